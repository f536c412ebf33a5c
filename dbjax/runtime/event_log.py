"""The event log of a run: the order in which services served calls, and what nodes saw of time.

The log consists of lines of JSON. The first names the format; every other holds a batch of entries
of one service or one node. The log is append-only, so if it breaks off, it is valid up to its last
complete line. Batches are written when they are full, so the entries of different services and
nodes may end at different times. The last line of a complete log says how many lines precede it.
Numbers are exact.

    {"dbjax event log": 1}
    {"service": "shard/0", "callers": ["replica/0", ...], "calls": [caller, number, version, ...]}
    {"node": "replica/0", "kind": "landed", "seen": [0, 1, 1, ...]}
    {"no replay": "shard/0 died"}
    {"end": 3}

`number` is the caller's own count of its calls. `version` is the `version` of the reply, or the
reply itself if it is an integer; otherwise, and for deferred replies, -1. The kind "landed" is what
`Node.is_done` returned.
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

Call = tuple[str, int, int]  # caller, its number of the call, version in the reply

KIND = "dbjax event log"
_FORMAT = 1
_BATCH = 1024  # entries in a line
_LOG = logging.getLogger("dbjax")


@final
class EventLog:
    """Writes the event log of a run; pass it to `dbjax.run` as `log`.

    If writing fails, the log breaks off with a warning, and the run continues.

    Args:
      write: a function that is given complete lines as text, such as the `write` of an open file.
        Several threads call it, one at a time.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        write(json.dumps({KIND: _FORMAT}) + "\n")
        self._lock = threading.Lock()
        self._streams: list[Served | Seen] = []
        self._lines, self._broken = 1, False

    def served(self, service: str) -> Served:
        """Makes the stream for the calls of a service; one thread at a time may use it."""
        made = Served(service, self._line)
        self._streams.append(made)
        return made

    def seen(self, node: str) -> Seen:
        """Makes the stream for what a node sees; one thread at a time may use it."""
        made = Seen(node, self._line)
        self._streams.append(made)
        return made

    def flush(self) -> None:
        """Writes all entries that are still buffered. No stream may be in use meanwhile."""
        for stream in self._streams:
            stream.flush()

    def end(self) -> None:
        """Flushes the log, and writes the line that marks it as complete."""
        self.flush()
        self._line({"end": self._lines})

    def no_replay(self, why: str) -> None:
        """Records that the run cannot be replayed from this log, and why."""
        self._line({"no replay": why})

    def take(self, lines: str) -> None:
        """Appends complete lines, such as those of another process's log of this run."""
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
    """The log's stream for one service: its calls, in the order in which it serves them."""

    def __init__(self, service: str, line: Callable[[dict[str, Any]], None]) -> None:
        self._service, self._line = service, line
        self._calls: list[Call] = []

    def add(self, caller: str, number: int, reply: Any) -> None:
        """Records that a call was served.

        Args:
          caller: the label of the caller.
          number: the caller's number of the call.
          reply: the reply, of which the version is recorded.
        """
        self._calls.append((caller, number, version_of(reply)))
        if len(self._calls) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Writes the buffered calls as one line."""
        calls, self._calls = self._calls, []
        if calls:
            callers = {caller: i for i, caller in enumerate(dict.fromkeys(c for c, _, _ in calls))}
            flat = [x for caller, *numbers in calls for x in (callers[caller], *numbers)]
            self._line({"service": self._service, "callers": list(callers), "calls": flat})


@final
class Seen:
    """The log's streams for one node: what it saw of time, one stream for each kind."""

    def __init__(self, node: str, line: Callable[[dict[str, Any]], None]) -> None:
        self._node, self._line = node, line
        self._seen: dict[str, list[Any]] = collections.defaultdict(list)
        self._places: dict[str, itertools.count[int]] = collections.defaultdict(itertools.count)

    def place(self, kind: str) -> int:
        """Returns a number for an observation of this kind that is made later: 0, 1, 2, ..."""
        return next(self._places[kind])

    def add(self, kind: str, value: Any) -> None:
        """Records a value that the node saw."""
        stream = self._seen[kind]
        stream.append(value)
        if len(stream) >= _BATCH:
            self._flush(kind)

    def flush(self) -> None:
        """Writes the buffered values, one line for each kind."""
        for kind in list(self._seen):
            self._flush(kind)

    def _flush(self, kind: str) -> None:
        seen, self._seen[kind] = self._seen[kind], []
        if seen:
            self._line({"node": self._node, "kind": kind, "seen": seen})


def version_of(reply: Any) -> int:
    """Returns the version in a reply: the reply itself if it is an int, or its `version`, or -1."""
    if type(reply) is int:
        return reply
    version = getattr(reply, "version", -1)
    return version if type(version) is int else -1


@final
class Script:
    """An event log that was read; pass it to `dbjax.replay`.

    Args:
      lines: the lines of the log, such as an open file. Everything from the first incomplete or
        damaged line on is ignored.

    Attributes:
      no_replay: why the run cannot be replayed; None: it can.
      breaks_off: the place at which the log breaks off, such as "after line 7"; None: the log is
        complete.

    Raises:
      ValueError: the lines are not an event log, the log has another version, or it is damaged
        before its first call or observation.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self.no_replay: str | None = None
        self.breaks_off: str | None = "after line 1"
        self._calls: dict[str, list[Call]] = {}
        self._seen: dict[tuple[str, str], list[Any]] = {}
        numbered = enumerate(lines, 1)
        if _header(next(numbered, (1, ""))[1]) != _FORMAT:
            raise ValueError(
                "this is not an event log of this version of dbjax: its first line differs"
            )
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
                        f"this event log is damaged from line {number} on, and holds nothing "
                        f"before that: {type(error).__name__}: {error}"
                    ) from error
                whole = False
            if not whole:
                self.breaks_off = f"in line {number}"
                return
            self.breaks_off = f"after line {number}"

    def calls(self, service: str) -> Sequence[Call]:
        """Returns the calls of a service, in the order in which it served them."""
        return self._calls.get(service, [])

    def seen(self, node: str, kind: str) -> Sequence[Any]:
        """Returns what a node saw of one kind, in order."""
        return self._seen.get((node, kind), [])

    def count(self) -> int:
        """Returns the number of calls that all services served."""
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
    """Raises TypeError if a value is not an integer."""
    for value in values:
        if type(value) is not int:
            raise TypeError(f"{value!r} is not an integer")


def _header(line: str) -> Any:
    """Returns the format version in the first line of a log; None if the line is not one."""
    try:
        return json.loads(line).get(KIND)
    except (ValueError, AttributeError):
        return None
