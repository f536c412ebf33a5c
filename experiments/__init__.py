"""Commands: run one experiment, compare methods, draw."""

from __future__ import annotations

# The C part of `signal`: what a command imports before it hears Ctrl-C takes as little time as can
# be. Before this file Python itself answers it, with a traceback.
import _signal  # type: ignore[import-not-found,unused-ignore]
import os
import sys


def _end(number: int, _: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


# Of a command (`python -m`) that is still importing its libraries: there is nothing to clean up,
# and a KeyboardInterrupt would be a traceback, or be swallowed in a callback of C.
if sys.argv[0] == "-m" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _end)

try:
    import dbjax  # noqa: F401
except ImportError as error:  # of a command, one line is enough
    if sys.argv[0] != "-m":
        raise
    sys.exit(str(error))
