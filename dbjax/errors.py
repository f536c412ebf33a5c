"""The errors that are not a user's mistake (those are ValueError and TypeError).

What only tells of a run must not lose it: its failure is one line of warning (`best_effort`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

_LOG = logging.getLogger("dbjax")
_SAID = 300  # characters of an error


class DbjaxError(Exception):
    """Any failure of a running program."""


class ServiceError(DbjaxError):
    """A service's method raised; says which, where and when; chained from the cause."""


class DeadlockError(DbjaxError):
    """Nothing can happen any more, yet some mains still wait; names each of them."""


class ReplayError(DbjaxError):
    """A run does not do again what its log says."""


class StateLost(DbjaxError):
    """A shard was restored from a checkpoint, and does not know what it is asked for."""


class NodeDied(DbjaxError):
    """A node died: that of an awaited main for good, or that of a called service."""


def one_line(error: BaseException, *, kind: bool = True) -> str:
    """An error's text, after its kind if that is asked for."""
    text = " ".join(str(error).split())[:_SAID]
    return f"{type(error).__name__}: {text}" if kind else text


@contextlib.contextmanager
def best_effort(what: str) -> Iterator[None]:
    """Whatever fails in the block is left out, with a warning that names `what` it was to be."""
    try:
        yield
    except Exception as error:
        _LOG.warning("%s is left out: %s", what, one_line(error))
