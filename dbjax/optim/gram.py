"""Gram matrices of L-BFGS: dot products of the pairs (s, y) and the gradient.

The functions accept NumPy and JAX matrices. The rows of a matrix belong to the vectors s, oldest
first, then to the vectors y, oldest first, and last, in a Gram matrix "with the gradient", to the
gradient. The columns are in the same order.
"""

from __future__ import annotations

from typing import Any


def bordered(gram: Any, border: Any, corner: Any) -> Any:
    """Extends the Gram matrix of m pairs by a new s, a new y and the gradient.

    Args:
      gram: dot products of the known pairs, [2 m, 2 m].
      border: dot products of the known vectors with the new s, the new y and the gradient,
        [2 m, 3].
      corner: dot products of the new s, the new y and the gradient with each other, [3, 3].

    Returns:
      The extended matrix, [2 m + 3, 2 m + 3], with the three new rows and columns at the end.
    """
    xp = gram.__array_namespace__()
    return xp.block([[gram, border], [border.T, corner]])


def order(pairs: int, leave_out: int | None = None) -> list[int]:
    """Returns the row indices that put a `bordered` matrix into the order of the module docstring.

    Args:
      pairs: the number of pairs before the new one.
      leave_out: the index of a pair to drop, counted from the oldest. None keeps all pairs.

    Returns:
      Row indices of s (oldest first), y (oldest first) and the gradient.
    """
    s, y = [*range(pairs), 2 * pairs], [*range(pairs, 2 * pairs), 2 * pairs + 1]
    if leave_out is not None:
        del s[leave_out], y[leave_out]
    return [*s, *y, 2 * pairs + 2]
