"""Ctrl-C as a flag.

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
    """The first Ctrl-C in the block sets the event and acts; a second one is raised as ever.

    Outside the main thread, which alone hears signals, the event is never set.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def interrupt(*_: Any) -> None:
        interrupted.set()
        act()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
