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
from typing import Any


@contextlib.contextmanager
def noted(act: Callable[[], None] = lambda: None) -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM in the block sets the event and acts; a second is as ever.

    Outside the main thread, which alone hears signals, the event is never set.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def interrupt(*_: Any) -> None:
        interrupted.set()
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
