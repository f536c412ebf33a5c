"""What only tells of a run must not lose it: its failure is one line of warning."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

_LOG = logging.getLogger("dbjax")
_SAID = 300  # characters of an error


def in_a_line(error: BaseException) -> str:
    """An error's kind and text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_SAID]}"


@contextlib.contextmanager
def only_reports(what: str) -> Iterator[None]:
    """Whatever fails in the block is left out, with a warning that names `what` it was to be."""
    try:
        yield
    except Exception as error:
        _LOG.warning("%s is left out: %s", what, in_a_line(error))
