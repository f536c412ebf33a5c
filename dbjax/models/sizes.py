"""Checks of the sizes that a user gives."""

from __future__ import annotations


def require_sizes(model: str, **sizes: int) -> None:
    """Raises ValueError, naming the first size that is not an integer of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{model}.{name}={size!r} must be an integer of at least 1")
