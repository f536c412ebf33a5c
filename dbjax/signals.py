"""Handling of Ctrl-C and SIGTERM.

Python raises KeyboardInterrupt wherever the main thread happens to be. In a callback of ctypes or
of the garbage collector (JAX has one), Python only prints the exception, and the work goes on.
Work that must end cleanly therefore sets a flag and checks it (`on_interrupt`).
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, final

_AGAIN_S = 0.05  # how often a Ctrl-C that Python ignored is sent again until it is heard


@final
class Interrupted:
    """Which signal has interrupted a block.

    Attributes:
      by: "SIGINT" or "SIGTERM"; None: no signal has come.
    """

    by: str | None = None


def exit_code(by: str | None = "SIGINT") -> int:
    """Returns the exit code that shells report for a process ended by a signal: 128 + its number.

    Args:
      by: "SIGINT" or "SIGTERM"; None: no signal, so the exit code is 0.
    """
    return 128 + signal.Signals[by] if by else 0


@contextlib.contextmanager
def on_interrupt(act: Callable[[], None] = lambda: None) -> Iterator[Interrupted]:
    """Catches the first Ctrl-C or SIGTERM in the block; a second one has its usual effect.

    Python delivers signals to the main thread only. In any other thread this does nothing.

    Args:
      act: is called when the signal comes.

    Yields:
      The record of the signal, filled in when it comes.
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
    """Makes Ctrl-C end the block with KeyboardInterrupt, wherever Python raises it.

    If Python ignores the exception, the signal is sent again every 0.05 s until its handler runs.
    Once is not enough: a signal that comes between the release of the GIL and a system call does
    not wake that call. If C code has turned the exception into another error, such as an
    ImportError, KeyboardInterrupt replaces that error. This does nothing outside the main thread,
    or where SIGINT is ignored.
    """
    before = signal.getsignal(signal.SIGINT)
    ours = threading.current_thread() is threading.main_thread()
    if not ours or before is signal.SIG_IGN:
        yield
        return
    came, heard = False, threading.Event()

    def interrupt(*_: Any) -> None:
        nonlocal came
        came = True
        heard.set()
        raise KeyboardInterrupt

    def send_until(heard: threading.Event) -> None:
        while not heard.wait(_AGAIN_S):
            _interrupt_main()

    def ignored(error: sys.UnraisableHookArgs) -> None:
        nonlocal heard
        if error.exc_type is KeyboardInterrupt:
            heard = threading.Event()
            threading.Thread(target=send_until, args=[heard], daemon=True).start()
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
        heard.set()
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = said_before


def _interrupt_main() -> None:
    """Sends SIGINT to the main thread, which wakes it even while it waits."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
