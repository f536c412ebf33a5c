"""The log of a run: in which order services served, and what nodes saw of time.

Lines of JSON, each a batch of one service or of one node, after one that says what the file is;
append-only, so a log that breaks off is good up to its last whole line. Numbers are exact.

    {"dbjax event log": 1}
    {"service": "shard/0", "callers": ["replica/0", ...], "calls": [caller, number, version, ...]}
    {"node": "replica/0", "kind": "landed", "seen": [0, 1, 1, ...]}
    {"no replay": "shard/0 died"}

`number` is the caller's own count of its calls; `version` that of the parameters in the reply,
-1 where there is none.
"""

from __future__ import annotations

import collections
import itertools
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

Call = tuple[str, int, int]  # caller, number, version

KIND = "dbjax event log"
_FORMAT = 1
_BATCH = 1024  # entries in a line


@final
class EventLog:
    """Writes a log. Every stream belongs to one thread at a time.

    Args:
      write: is given whole lines; called by several threads, one at a time.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        write(json.dumps({KIND: _FORMAT}) + "\n")
        self._lock = threading.Lock()
        self._streams: list[Served | Seen] = []

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

    def no_replay(self, why: str) -> None:
        """Says that the run cannot be done again from this."""
        self._line({"no replay": why})

    def take(self, lines: str) -> None:
        """Whole lines of another process's log of this run."""
        with self._lock:
            self._write(lines)

    def _line(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, separators=(",", ":")) + "\n"
        with self._lock:
            self._write(line)


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

    Raises:
      ValueError: it is no log, or one of another version.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self.no_replay: str | None = None
        self._calls: dict[str, list[Call]] = {}
        self._seen: dict[tuple[str, str], list[Any]] = {}
        whole = itertools.takewhile(lambda line: line.endswith("\n"), lines)
        try:
            if json.loads(next(whole, "{}")).get(KIND) != _FORMAT:
                raise ValueError("it does not begin as one does")
            for line in whole:
                self._take(json.loads(line))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no event log of this version of dbjax: {error}") from error

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
            calls = self._calls.setdefault(entry["service"], [])
            calls += [(callers[c], n, v) for c, n, v in zip(flat, flat, flat, strict=True)]
        else:
            self._seen.setdefault((entry["node"], entry["kind"]), []).extend(entry["seen"])
