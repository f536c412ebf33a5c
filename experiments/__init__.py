"""Command-line programs: run an experiment, sweep, compare methods, reproduce figures."""

from __future__ import annotations

# This is the C part of `signal`. Until a handler is installed, Ctrl-C ends a command with a
# traceback, so as little as possible is imported before.
import _signal  # type: ignore[import-not-found,unused-ignore]
import os
import sys


def _end(number: int, _: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


# While a command (`python -m`) is still importing its libraries, Ctrl-C ends it at once: there is
# nothing to clean up, and a KeyboardInterrupt would print a traceback or be lost in a C callback.
if sys.argv[0] == "-m" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _end)

try:
    import dbjax  # noqa: F401
except ImportError as error:  # a command prints one line instead of a traceback
    if sys.argv[0] != "-m":
        raise
    sys.exit(str(error))
