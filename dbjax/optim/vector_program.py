"""Sums and dot products of pytrees, computed for a list of commands at a time.

The cost of operations on vectors is the cost of moving the vectors through memory. All dot
products of a list are therefore computed in one pass over their vectors, wherever they occur in
the list.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Vector = Any  # a pytree of arrays

_ROW = 1024  # number of coefficients that are summed sequentially
_PASS = 72  # dot products in one pass; each one occupies registers and adds compile time
# On a CPU, XLA reorders sums only with permission, and sequential sums cannot use vector
# registers. These options preserve infinities and NaNs.
_REORDER = {
    "xla_cpu_enable_fast_math": True,
    "xla_cpu_fast_math_honor_infs": True,
    "xla_cpu_fast_math_honor_nans": True,
    "xla_cpu_fast_math_honor_division": True,
    "xla_cpu_fast_math_honor_functions": True,
}


class VectorProgram(NamedTuple):
    """A list of commands without names, in which vectors are identified by places.

    The place of input i is i, and the place of the result of step k is ~k.

    Attributes:
      steps: for each step, "combine" or "multiply" and the places of its operands.
      pairs: the pairs of places whose dot products are the replies.
      kept: the places of the results to return.
    """

    steps: tuple[tuple[str, tuple[int, ...]], ...]
    pairs: tuple[tuple[int, int], ...]
    kept: tuple[int, ...]


def run(
    program: VectorProgram, like: Vector, given: Sequence[Vector], coefficients: Sequence[float]
) -> tuple[list[Vector], np.ndarray[Any, Any]]:
    """Runs a program on JAX or NumPy vectors.

    Args:
      program: the program.
      like: a vector with the structure and shapes of a combination without terms.
      given: the inputs.
      coefficients: the coefficients of all combinations, in order.

    Returns:
      The results that the program keeps, and its replies in float64.
    """
    if isinstance(jax.tree.leaves(like)[0], jax.Array):
        made, replies = _compiled(program)(like, given, np.array(coefficients))
    else:
        made, replies = _made(program, like, given, coefficients, _dots)
    return made, np.asarray(replies, np.float64)


@functools.lru_cache(maxsize=256)
def _compiled(program: VectorProgram) -> Callable[..., Any]:
    options = _REORDER if jax.default_backend() == "cpu" else None
    return jax.jit(functools.partial(_made, program, dots=_fused_dots), compiler_options=options)


def _made(
    program: VectorProgram,
    like: Vector,
    given: Sequence[Vector],
    coefficients: Sequence[Any],
    dots: Callable[..., Any],
) -> tuple[list[Vector], Any]:
    values = dict(enumerate(given))
    remaining = iter(coefficients)
    for k, (kind, places) in enumerate(program.steps):
        vectors = [values[place] for place in places]
        if kind == "multiply":
            values[~k] = jax.tree.map(operator.mul, *vectors)
        else:
            values[~k] = _combined([next(remaining) for _ in places], vectors, like)
    return [values[place] for place in program.kept], dots(values, program.pairs)


def _combined(coefficients: Sequence[Any], vectors: Sequence[Vector], like: Vector) -> Vector:
    def combined(*leaves: Any) -> Any:
        wide = np.promote_types(leaves[0].dtype, np.float32)
        terms = (
            _as(c, wide, x) * x.astype(wide) for c, x in zip(coefficients, leaves, strict=True)
        )
        return functools.reduce(operator.add, terms).astype(leaves[0].dtype)

    return jax.tree.map(combined, *vectors) if vectors else jax.tree.map(_zeros, like)


def _as(coefficient: Any, dtype: Any, leaf: Any) -> Any:
    """Casts a coefficient for a JAX leaf. A Python number stays one, so it does not widen NumPy."""
    return coefficient.astype(dtype) if isinstance(leaf, jax.Array) else coefficient


def _zeros(leaf: Any) -> Any:
    return jnp.zeros_like(leaf) if isinstance(leaf, jax.Array) else np.zeros_like(leaf)


def _dots(values: dict[int, Vector], pairs: Sequence[tuple[int, int]]) -> list[Any]:
    """Computes dot products of NumPy arrays.

    `np.vdot` is not used, because its float32 sums of 42 M numbers are off by 1e-3.
    """

    def dot(a: Vector, b: Vector) -> Any:
        leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        wide = ((x, y, np.promote_types(x.dtype, np.float32)) for x, y in leaves)
        return sum(np.sum(np.multiply(x, y, dtype=dtype)) for x, y, dtype in wide)

    with np.errstate(over="ignore"):  # as in JAX, an overflow shows as an infinity
        return [dot(values[a], values[b]) for a, b in pairs]


def _fused_dots(values: dict[int, Vector], pairs: Sequence[tuple[int, int]]) -> Any:
    """Computes the dot products of pairs, [pairs], with one pass over each leaf.

    Each row is summed first and the sums of the rows are added afterwards. This runs in parallel
    and keeps float32 rounding errors from growing with the length of the vectors.
    """
    if not pairs:
        return jnp.zeros(0)
    different = sorted(set(pairs), key=lambda pair: pair[::-1])
    rows = {place: list(_rows(values[place])) for place in {p for pair in pairs for p in pair}}
    total: Any = jnp.zeros(len(different))
    for k in range(len(rows[pairs[0][0]])):
        products = [rows[a][k] * rows[b][k] for a, b in different]
        passes = [products[i : i + _PASS] for i in range(0, len(products), _PASS)]
        total += jnp.concatenate([_summed(some).sum(1) for some in passes])
    return total[np.array([different.index(pair) for pair in pairs])]


def _rows(vector: Vector) -> Iterator[jax.Array]:
    """Yields the coefficients in float32 or wider, in arrays with rows of a suitable length."""
    for leaf in jax.tree.leaves(vector):
        wide = leaf.astype(np.promote_types(leaf.dtype, np.float32))
        if leaf.ndim > 1 and _ROW // 4 <= leaf.shape[-1] <= _ROW * 8:
            yield wide
        else:
            count = leaf.size // _ROW
            flat = wide.reshape(-1)
            yield flat[: count * _ROW].reshape(count, _ROW)
            yield flat[count * _ROW :]


def _summed(products: Sequence[jax.Array]) -> jax.Array:
    """Sums each array over its last axis, all in one loop; returns [products, rows]."""

    def add(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        return tuple(map(operator.add, a, b))

    zeros = (np.zeros((), products[0].dtype),) * len(products)
    sums = jax.lax.reduce(tuple(products), zeros, add, (products[0].ndim - 1,))
    return jnp.stack([one.reshape(-1) for one in sums])
