"""The errors of a running program. A user's mistake raises ValueError or TypeError instead.

Code that only reports on a run must not end the run: if it fails, it logs a warning of one line
(`best_effort`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

_LOG = logging.getLogger("dbjax")
_SAID = 300  # how many characters of an error are shown


class DbjaxError(Exception):
    """The base class of the failures of a running program."""


class ServiceError(DbjaxError):
    """A method of a service raised an error, which is the `__cause__` of this one.

    The message names the service, the method, the caller and the time.
    """


class DeadlockError(DbjaxError):
    """Nothing can happen any more, but some processes still wait; the message names each."""


class ReplayError(DbjaxError):
    """A run cannot be replayed from its event log, or the replay differs from the log."""


class StateLost(DbjaxError):
    """A shard was restored from a checkpoint that does not hold what the shard is asked for."""


class NodeDied(DbjaxError):
    """A node failed before it answered a call, or failed for good while its process was awaited."""


def one_line(error: BaseException, *, kind: bool = True) -> str:
    """Returns the text of an error on one line, at most 300 characters of it.

    Args:
      error: the error.
      kind: whether the name of the error's class comes first.
    """
    text = " ".join(str(error).split())[:_SAID]
    return f"{type(error).__name__}: {text}" if kind else text


@contextlib.contextmanager
def best_effort(what: str) -> Iterator[None]:
    """Logs a warning instead of raising an error if the block fails.

    Args:
      what: a noun phrase that tells the warning what the block was to produce.
    """
    try:
        yield
    except Exception as error:
        _LOG.warning("skipped %s: %s", what, one_line(error))
