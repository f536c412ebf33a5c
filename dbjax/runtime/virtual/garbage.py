"""Python's search for garbage, made rare."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def rare_garbage_collection() -> Iterator[None]:
    """Futures of thousands of replicas are many objects and few cycles to look for.

    With Python's own thresholds half the time of 10,000 replicas went into the search; and
    what was there before is not looked at again.
    """
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 1_000)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
