"""Gram matrices of L-BFGS: dot products of the pairs s, y and of the gradient.

The functions take matrices of NumPy or of jax. A matrix has the rows of s, oldest first, then those
of y, oldest first, and, where it is said, the gradient's row at its end.
"""

from __future__ import annotations

from typing import Any


def bordered(gram: Any, border: Any, corner: Any) -> Any:
    """The Gram matrix of m pairs, with a new s, a new y and the gradient behind them.

    Args:
      gram: [2 m, 2 m], dot products of the known pairs.
      border: [2 m, 3], those of the known vectors with the new s, the new y and the gradient.
      corner: [3, 3], those of the new ones with each other.

    Returns:
      [2 m + 3, 2 m + 3].
    """
    xp = gram.__array_namespace__()
    return xp.block([[gram, border], [border.T, corner]])


def order(pairs: int, leave_out: int | None = None) -> list[int]:
    """Rows of a bordered matrix in the order of a Gram matrix with the gradient.

    Args:
      pairs: how many there were before the new one.
      leave_out: the pair to leave out, counted from the oldest; None: none.
    """
    s, y = [*range(pairs), 2 * pairs], [*range(pairs, 2 * pairs), 2 * pairs + 1]
    if leave_out is not None:
        del s[leave_out], y[leave_out]
    return [*s, *y, 2 * pairs + 2]
