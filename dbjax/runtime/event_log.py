"""The log of a run: in which order services served, and what nodes saw of time.

Lines of JSON, each a batch of one service or of one node, after one that says what the file is;
append-only, so a log that breaks off is good up to its last whole line. Batches are written when
they are full, so services and nodes may break off at different times. The last line of a whole log
says how many came before it. Numbers are exact.

    {"dbjax event log": 1}
    {"service": "shard/0", "callers": ["replica/0", ...], "calls": [caller, number, version, ...]}
    {"node": "replica/0", "kind": "landed", "seen": [0, 1, 1, ...]}
    {"no replay": "shard/0 died"}
    {"end": 3}

`number` is the caller's own count of its calls; `version` that of the parameters in the reply,
-1 where there is none.
"""

from __future__ import annotations

import collections
import itertools
import json
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

from dbjax.errors import one_line

Call = tuple[str, int, int]  # caller, number, version

KIND = "dbjax event log"
_FORMAT = 1
_BATCH = 1024  # entries in a line
_LOG = logging.getLogger("dbjax")


@final
class EventLog:
    """Writes a log. Every stream belongs to one thread at a time.

    A log that cannot be written any more breaks off, with a warning; the run goes on.

    Args:
      write: is given whole lines; called by several threads, one at a time.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        write(json.dumps({KIND: _FORMAT}) + "\n")
        self._lock = threading.Lock()
        self._streams: list[Served | Seen] = []
        self._lines, self._broken = 1, False

    def served(self, service: str) -> Served:
        """For the calls of a service."""
        made = Served(service, self._line)
        self._streams.append(made)
        return made

    def seen(self, node: str) -> Seen:
        """For what a node sees."""
        made = Seen(node, self._line)
        self._streams.append(made)
        return made

    def flush(self) -> None:
        """Writes what is not written yet; when no stream is in use."""
        for stream in self._streams:
            stream.flush()

    def end(self) -> None:
        """Writes what is not written yet, and that it is all; when no stream is in use."""
        self.flush()
        self._line({"end": self._lines})

    def no_replay(self, why: str) -> None:
        """Says that the run cannot be done again from this."""
        self._line({"no replay": why})

    def take(self, lines: str) -> None:
        """Whole lines of another process's log of this run."""
        with self._lock:
            if self._broken:
                return
            try:
                self._write(lines)
                self._lines += lines.count("\n")
            except Exception as error:
                self._broken = True
                _LOG.warning("the event log breaks off here: %s", one_line(error))

    def _line(self, entry: dict[str, Any]) -> None:
        self.take(json.dumps(entry, separators=(",", ":")) + "\n")


@final
class Served:
    """The calls of one service, in the order in which it serves them."""

    def __init__(self, service: str, line: Callable[[dict[str, Any]], None]) -> None:
        self._service, self._line = service, line
        self._calls: list[Call] = []

    def add(self, caller: str, number: int, reply: Any) -> None:
        self._calls.append((caller, number, version_of(reply)))
        if len(self._calls) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        calls, self._calls = self._calls, []
        if calls:
            callers = {caller: i for i, caller in enumerate(dict.fromkeys(c for c, _, _ in calls))}
            flat = [x for caller, *numbers in calls for x in (callers[caller], *numbers)]
            self._line({"service": self._service, "callers": list(callers), "calls": flat})


@final
class Seen:
    """What one node saw."""

    def __init__(self, node: str, line: Callable[[dict[str, Any]], None]) -> None:
        self._node, self._line = node, line
        self._seen: dict[str, list[Any]] = collections.defaultdict(list)
        self._places: dict[str, itertools.count[int]] = collections.defaultdict(itertools.count)

    def place(self, kind: str) -> int:
        """A number for something of this kind that is settled later: 0, 1, 2, ..."""
        return next(self._places[kind])

    def add(self, kind: str, value: Any) -> None:
        stream = self._seen[kind]
        stream.append(value)
        if len(stream) >= _BATCH:
            self._flush(kind)

    def flush(self) -> None:
        for kind in list(self._seen):
            self._flush(kind)

    def _flush(self, kind: str) -> None:
        seen, self._seen[kind] = self._seen[kind], []
        if seen:
            self._line({"node": self._node, "kind": kind, "seen": seen})


def version_of(reply: Any) -> int:
    """The version that a reply carries: it is one, or has one; else -1."""
    if type(reply) is int:
        return reply
    version = getattr(reply, "version", -1)
    return version if type(version) is int else -1


@final
class Script:
    """A log that was read.

    Args:
      lines: of the log; what follows the first that is not whole is left out.

    Attributes:
      no_replay: why the run cannot be done again; None: it can.
      breaks_off: where, and how that is known; None: the log is whole.

    Raises:
      ValueError: it is no log, or one of another version.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self.no_replay: str | None = None
        self.breaks_off: str | None = "after line 1"
        self._calls: dict[str, list[Call]] = {}
        self._seen: dict[tuple[str, str], list[Any]] = {}
        numbered = enumerate(lines, 1)
        if _header(next(numbered, (1, ""))[1]) != _FORMAT:
            raise ValueError("this is no event log of this version of dbjax: it does not begin so")
        for number, line in numbered:
            try:
                whole = line.endswith("\n")
                entry = json.loads(line) if whole else {}
                if entry.keys() == {"end"}:
                    self.breaks_off = None if entry["end"] == number - 1 else "before its end"
                    return
                if whole:
                    self._take(entry)
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                if not self._calls and not self._seen:
                    raise ValueError(
                        f"this event log is damaged from line {number} on, and nothing is before "
                        f"it: {type(error).__name__}: {error}"
                    ) from error
                whole = False
            if not whole:
                self.breaks_off = f"in line {number}"
                return
            self.breaks_off = f"after line {number}"

    def calls(self, service: str) -> Sequence[Call]:
        """Of a service, in order."""
        return self._calls.get(service, [])

    def seen(self, node: str, kind: str) -> Sequence[Any]:
        """What a node saw, of one kind, in order."""
        return self._seen.get((node, kind), [])

    def count(self) -> int:
        """Of all calls that were served."""
        return sum(map(len, self._calls.values()))

    def _take(self, entry: dict[str, Any]) -> None:
        if "no replay" in entry:
            self.no_replay = entry["no replay"]
        elif "service" in entry:
            flat, callers = iter(entry["calls"]), entry["callers"]
            made = [(callers[c], n, v) for c, n, v in zip(flat, flat, flat, strict=True)]
            _require_integers(x for _, *numbers in made for x in numbers)
            self._calls.setdefault(entry["service"], []).extend(made)
        else:
            seen, kind = entry["seen"], entry["kind"]
            if kind == "first":
                _require_integers(x for place, one in seen for x in (place, one or 0))
            elif kind != "now":
                _require_integers(seen)
            self._seen.setdefault((entry["node"], kind), []).extend(seen)


def _require_integers(values: Iterable[Any]) -> None:
    """Raises TypeError where one is none."""
    for value in values:
        if type(value) is not int:
            raise TypeError(f"{value!r} is no integer")


def _header(line: str) -> Any:
    """The version that the first line of a log names."""
    try:
        return json.loads(line).get(KIND)
    except (ValueError, AttributeError):
        return None
