"""Reading text with nested brackets and quoted strings, as in HLO."""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|[()\[\]{},]')


def closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` has been closed: the index after it."""
    depth = 0
    for token in _TOKEN.finditer(text, start):
        depth += _step(token[0])
        if depth == 0:
            return token.end()
    raise ValueError(f"a bracket is never closed: {text[start : start + 80]}")


def pieces(text: str) -> Iterator[str]:
    """The parts between the commas that are in no bracket and no string; none if blank."""
    if not text.strip():
        return
    depth, start = 0, 0
    for token in _TOKEN.finditer(text):
        depth += _step(token[0])
        if depth < 0:
            raise ValueError(f"a bracket closes that never opened: {text[:80]}")
        if token[0] == "," and depth == 0:
            yield text[start : token.start()].strip()
            start = token.end()
    if depth:
        raise ValueError(f"a bracket is never closed: {text[:80]}")
    yield text[start:].strip()


def _step(token: str) -> int:
    return 1 if token in "([{" else -1 if token in ")]}" else 0
