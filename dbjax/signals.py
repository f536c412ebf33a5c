"""Ctrl-C, and SIGTERM, as a flag.

Python raises KeyboardInterrupt wherever the main thread happens to be. In a callback of
ctypes or of the garbage collector (JAX has one) it is printed and forgotten, and the work
goes on. Work that must end therefore takes a note, and looks at it.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, final

_AGAIN_S = 0.05  # after which a Ctrl-C that was forgotten comes again


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
def on_interrupt(act: Callable[[], None] = lambda: None) -> Iterator[Interrupted]:
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


@contextlib.contextmanager
def reliable_interrupt() -> Iterator[None]:
    """Ctrl-C in the block ends it with KeyboardInterrupt, wherever Python raises that.

    Where it is forgotten it is raised again a moment later; where C code has made another error of
    it, such as that of an import, that one is replaced. Outside the main thread, or where SIGINT
    is ignored: nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    ours = threading.current_thread() is threading.main_thread()
    if not ours or before is signal.SIG_IGN:
        yield
        return
    came, again = False, threading.Timer(_AGAIN_S, _interrupt_main)

    def interrupt(*_: Any) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    def ignored(error: sys.UnraisableHookArgs) -> None:
        nonlocal again
        if error.exc_type is KeyboardInterrupt:
            again = threading.Timer(_AGAIN_S, _interrupt_main)
            again.daemon = True
            again.start()
        else:
            said_before(error)

    said_before, sys.unraisablehook = sys.unraisablehook, ignored
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        again.cancel()
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = said_before


def _interrupt_main() -> None:
    """As Ctrl-C does, also where the main thread waits."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
