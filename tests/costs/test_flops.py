"""FLOPs and memory traffic of single operations, against XLA's own count where it has one."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest

from dbjax.costs.program import costs, costs_of


def array(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


def convolution(x, w, strides=1, **options):
    return jax.lax.conv_general_dilated(
        x, w, (strides, strides), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


def test_a_convolution_counts_taps_on_inputs():
    found = costs(jax.jit(convolution), array(2, 16, 12, 3), array(3, 3, 3, 8))
    taps = (3 * 16 - 2) * (3 * 12 - 2)  # at either border of an axis one tap is on padding
    assert found.flops == 2 * taps * 2 * 3 * 8


@pytest.mark.parametrize("of", ["inputs", "kernel"])
@pytest.mark.parametrize(("strides", "taps"), [(1, (3 * 16 - 2) * (3 * 12 - 2)),
                                               (2, (3 * 8 - 1) * (3 * 6 - 1)),
                                               (3, (3 * 6 - 2) * (3 * 4 - 0))])  # fmt: skip
def test_the_backward_pass_of_a_convolution_has_the_taps_of_the_forward_one(of, strides, taps):
    """Every product of an input, a weight and an output comes once in each of the three.

    Along 16 with strides of 2 there are 8 outputs; the last one's last tap is on padding. With 3
    there are 6, and a tap on padding at either end; along 12 there are 4, and none.
    """
    x, w = array(2, 16, 12, 3), array(3, 3, 3, 8)
    y = jax.eval_shape(lambda x, w: convolution(x, w, strides), x, w)

    def backward(x, w, y):
        if of == "kernel":
            return jax.vjp(lambda w: convolution(x, w, strides), w)[1](y)
        return jax.vjp(lambda x: convolution(x, w, strides), x)[1](y)

    assert costs(jax.jit(backward), x, w, y).flops == 2 * taps * 2 * 3 * 8


def elements(program, opcode):
    """Of all results of an opcode in a compiled program: how often XLA counts 1, or 1 less."""
    shapes = re.findall(rf"= \w+\[([\d,]*)\]\S* {opcode}\(", program)
    return sum(math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes)


def none(program):
    return 0


def conversions(program):
    return elements(program, "convert")


def one_less_each(program):
    """An addition less for each result; a sum may be cut into windows whose sums are summed."""
    return -elements(program, "reduce") - elements(program, "reduce-window")


CONVOLUTION_GRADIENT = jax.grad(lambda w, x: convolution(x, w, 2).sum())
# (program, arguments, what XLA counts and these costs do not, in what it has compiled)
AGAINST_XLA = {
    "product": (jnp.matmul, [array(300, 200), array(200, 100)], none),
    "small": (lambda x, w: x @ w + 1, [array(4, 4), array(4, 4)], none),
    "vector": (jnp.matmul, [array(300, 200), array(200)], none),
    "einsum": (
        functools.partial(jnp.einsum, "bij,bkj->bik"),
        [array(5, 60, 70), array(5, 80, 70)],
        none,
    ),
    "two contracted": (
        functools.partial(jnp.einsum, "ijk,jkl->il"),
        [array(50, 6, 7), array(6, 7, 80)],
        none,
    ),
    "bfloat16": (  # where the CPU has no such product it is converted to float32, and back
        jnp.matmul,
        [array(300, 200, dtype=jnp.bfloat16), array(200, 100, dtype=jnp.bfloat16)],
        conversions,
    ),
    "integers": (
        functools.partial(jax.lax.dot, preferred_element_type=jnp.int32),
        [array(300, 200, dtype=jnp.int8), array(200, 100, dtype=jnp.int8)],
        none,
    ),
    "tanh": (lambda x: jnp.tanh(x * 2 + 1), [array(30, 40)], none),
    "sum": (lambda x: (x * x).sum(), [array(256, 1024)], one_less_each),
    "sums": (  # rows of 40 in windows of 32: XLA adds up their padding too
        lambda x: (x * x).sum(1),
        [array(30, 40)],
        lambda program: 30 * (2 * 32 - 40) + one_less_each(program),
    ),
    "convolution": (convolution, [array(2, 16, 12, 3), array(3, 3, 3, 8)], none),
    "large convolution": (convolution, [array(8, 32, 32, 32), array(3, 3, 32, 64)], none),
    "strided": (
        functools.partial(convolution, strides=2),
        [array(2, 16, 12, 3), array(3, 3, 3, 8)],
        none,
    ),
    "grouped": (
        functools.partial(convolution, feature_group_count=2),
        [array(2, 16, 12, 4), array(3, 3, 2, 8)],
        none,
    ),
    "dilated": (
        functools.partial(convolution, rhs_dilation=(2, 3)),
        [array(2, 16, 12, 3), array(3, 3, 3, 8)],
        none,
    ),
    "gradient": (CONVOLUTION_GRADIENT, [array(3, 3, 16, 32), array(8, 16, 16, 16)], none),
}


@pytest.mark.parametrize("name", AGAINST_XLA)
def test_against_xla_where_there_is_no_loop(name):
    fn, arguments, only_xla = AGAINST_XLA[name]
    compiled = jax.jit(fn).lower(*arguments).compile()
    found, xla = costs_of(compiled), compiled.cost_analysis()
    expected = xla["flops"] + xla.get("transcendentals", 0) - only_xla(compiled.as_text())
    assert found.flops == pytest.approx(expected, rel=1e-7)  # XLA's are of single precision
    assert found.flops > 0
    assert found.bytes == pytest.approx(xla["bytes accessed"], rel=1e-7)
