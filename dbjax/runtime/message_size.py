"""How many bytes a message carries."""

from __future__ import annotations

import dataclasses
from typing import Any

_WEIGHTLESS = (int, float, str, bool, type(None))


def size_bytes(message: Any) -> int:
    """Sum over the arrays in `message`: containers, dataclasses, anything with `nbytes`.

    Scalars and names weigh nothing: the model's `latency_s` and `service_s` stand for them.
    """
    if isinstance(message, _WEIGHTLESS):
        return 0
    size = getattr(message, "nbytes", None)
    if size is not None:
        return int(size)
    if isinstance(message, (tuple, list)):
        return sum(map(size_bytes, message))
    if isinstance(message, dict):
        return sum(map(size_bytes, message.values()))
    if dataclasses.is_dataclass(message):
        return sum(size_bytes(getattr(message, f.name)) for f in dataclasses.fields(message))
    return 0
