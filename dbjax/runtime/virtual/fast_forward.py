"""A run whose objects were restored: its coroutines are brought again to where they stood."""

from __future__ import annotations

from collections.abc import Iterator

from dbjax.runtime.context import DRIVER, current
from dbjax.runtime.virtual.journal import JournaledCoroutine
from dbjax.runtime.virtual.runtime import VirtualRuntime


def journals(runtime: VirtualRuntime) -> Iterator[JournaledCoroutine]:
    """Of all coroutines that live."""
    found = (one.journal() for one in runtime.coroutines())
    return (journal for journal in found if journal is not None)


def fast_forward(runtime: VirtualRuntime) -> None:
    """Brings them there. What they recorded then is recorded."""
    trace, runtime.trace = runtime.trace, None
    try:
        for one in runtime.coroutines():
            one.fast_forward()
    finally:
        runtime.trace, current.caller = trace, DRIVER
