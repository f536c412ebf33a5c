"""Commands: run one experiment, compare methods, draw."""

import os
import signal
import sys
from typing import Any


def _end(number: int, _: Any) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


# Of a command (`python -m`) that is still importing its libraries: there is nothing to clean up,
# and a KeyboardInterrupt would be a traceback, or be swallowed in a callback of C.
if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)

try:
    import dbjax  # noqa: F401
except ImportError as error:  # of a command, one line is enough
    if sys.argv[0] != "-m":
        raise
    sys.exit(str(error))
