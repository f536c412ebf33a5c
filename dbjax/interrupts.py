"""Ctrl-C, and SIGTERM, as a flag.

Python raises KeyboardInterrupt wherever the main thread happens to be. In a callback of
ctypes or of the garbage collector (JAX has one) it is printed and forgotten, and the work
goes on. Work that must end therefore takes a note, and looks at it.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, final


@final
class Interrupted:
    """A note.

    Attributes:
      by: "SIGINT" or "SIGTERM"; None: there was neither.
    """

    by: str | None = None


def exit_code(by: str | None = "SIGINT") -> int:
    """Of a process that a signal has ended, as shells give it; 0 where there was none."""
    return 128 + signal.Signals[by] if by else 0


@contextlib.contextmanager
def noted(act: Callable[[], None] = lambda: None) -> Iterator[Interrupted]:
    """The first Ctrl-C or SIGTERM in the block is noted and acts; a second is as ever.

    Outside the main thread, which alone hears signals, nothing is ever noted.
    """
    interrupted = Interrupted()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def interrupt(number: int, _: Any) -> None:
        interrupted.by = signal.Signals(number).name
        act()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        restore()
