"""FLOPs and memory traffic of single operations, against XLA's own count where it has one."""

import functools

import jax
import jax.numpy as jnp
import pytest

from dbjax.parallel.costs import costs, costs_of


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


CONVOLUTION_GRADIENT = jax.grad(lambda w, x: convolution(x, w, 2).sum())
# (program, arguments, what XLA counts and these costs do not)
AGAINST_XLA = {
    "product": (jnp.matmul, [array(300, 200), array(200, 100)], 0),
    "small": (lambda x, w: x @ w + 1, [array(4, 4), array(4, 4)], 0),
    "vector": (jnp.matmul, [array(300, 200), array(200)], 0),
    "einsum": (
        functools.partial(jnp.einsum, "bij,bkj->bik"),
        [array(5, 60, 70), array(5, 80, 70)],
        0,
    ),
    "two contracted": (
        functools.partial(jnp.einsum, "ijk,jkl->il"),
        [array(50, 6, 7), array(6, 7, 80)],
        0,
    ),
    "bfloat16": (  # converted to float32 on a CPU, and back: 1 per element in XLA's count
        jnp.matmul,
        [array(300, 200, dtype=jnp.bfloat16), array(200, 100, dtype=jnp.bfloat16)],
        300 * 200 + 200 * 100 + 300 * 100,
    ),
    "integers": (
        functools.partial(jax.lax.dot, preferred_element_type=jnp.int32),
        [array(300, 200, dtype=jnp.int8), array(200, 100, dtype=jnp.int8)],
        0,
    ),
    "tanh": (lambda x: jnp.tanh(x * 2 + 1), [array(30, 40)], 0),
    "sum": (lambda x: (x * x).sum(), [array(256, 1024)], -1),  # XLA: an addition less
    "sums": (  # XLA: rows of 40 in windows of 32, their padding added too, and one less in each
        lambda x: (x * x).sum(1),
        [array(30, 40)],
        30 * (2 * 31 - 40) + 30 * (1 - 2),
    ),
    "convolution": (convolution, [array(2, 16, 12, 3), array(3, 3, 3, 8)], 0),
    "large convolution": (convolution, [array(8, 32, 32, 32), array(3, 3, 32, 64)], 0),
    "strided": (
        functools.partial(convolution, strides=2),
        [array(2, 16, 12, 3), array(3, 3, 3, 8)],
        0,
    ),
    "grouped": (
        functools.partial(convolution, feature_group_count=2),
        [array(2, 16, 12, 4), array(3, 3, 2, 8)],
        0,
    ),
    "dilated": (
        functools.partial(convolution, rhs_dilation=(2, 3)),
        [array(2, 16, 12, 3), array(3, 3, 3, 8)],
        0,
    ),
    "gradient": (CONVOLUTION_GRADIENT, [array(3, 3, 16, 32), array(8, 16, 16, 16)], 0),
}


@pytest.mark.parametrize("name", AGAINST_XLA)
def test_against_xla_where_there_is_no_loop(name):
    fn, arguments, more = AGAINST_XLA[name]
    compiled = jax.jit(fn).lower(*arguments).compile()
    found, xla = costs_of(compiled), compiled.cost_analysis()
    expected = xla["flops"] + xla.get("transcendentals", 0) - more
    assert found.flops == pytest.approx(expected, rel=1e-7)  # XLA's are of single precision
    assert found.flops > 0
    assert found.bytes == pytest.approx(xla["bytes accessed"], rel=1e-7)
