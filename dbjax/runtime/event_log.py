"""The event log of a run: the order in which services served calls, and what nodes saw of time.

The log consists of lines of JSON. The first names the format; every other holds a batch of entries
of one stream. There is a stream for each incarnation of a service, and there are some for each
incarnation of a caller. The log is append-only, so if it breaks off, it is valid up to its last
complete line. Batches are written when they are full, so different streams may end at different
times. The last line of a complete log says how many lines precede it. Numbers are exact.

    {"dbjax event log": 2}
    {"service": "shard/0", "incarnation": 1, "state": 17}
    {"service": "shard/0", "incarnation": 1, "sources": [["replica/0", 0, 0], ...],
     "events": [source, number, value, ...]}
    {"node": "replica/0", "incarnation": 0, "kind": "landed", "seen": [0, 1, 1, ...]}
    {"defers arithmetic": true}
    {"no replay": "it was resumed from a checkpoint"}
    {"end": 5}

The first line of an incarnation of a service says with which state it began: the number of the
observer's call that returned the state, or null. Its events are, in order, the calls that it
served, the answers to its own calls, and notes:

| source | number | value |
|---|---|---|
| `[caller, incarnation, attempt]` | the caller's number of the call | the version in the reply |
| `[attempt]` | the service's own number of the call | whether the other service died: 1 or 0 |
| `[kind, name]` | any number | 0 |

The version is the `version` of the reply, or the reply itself if it is an integer; otherwise, and
for deferred replies, -1. It is null if the line was written while the call was being served. An
observer has the incarnation -1, and waiting for another node to be up has the attempt -1, with
numbers of its own. The kind "landed" is what `Node.is_done` returned, and "died" lists
the calls, by number and attempt, of which the caller learned that the other node had died.
"""

from __future__ import annotations

import collections
import itertools
import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, final

from dbjax.errors import one_line
from dbjax.runtime.node_names import service_name

KIND = "dbjax event log"
OBSERVER = -1  # stands for the incarnation of an observer, which does not fail
WAIT = -1  # stands for the attempt of waiting for a node to be up, which is not a call
DRIVER_LABEL = "driver"
_FORMAT = 2
_BATCH = 1024  # entries in a line
_LOG = logging.getLogger("dbjax")
Incarnation = tuple[str, int]  # a service or a caller, and how often it had failed before


class CallName(NamedTuple):
    """The name of a call, which is the same on every runtime.

    Attributes:
      caller: the label of the caller.
      incarnation: how often the caller had failed before; -1 for an observer.
      number: the caller's number of the call: 1, 2, 3, ...
      attempt: how often the caller had made this call before, at this or another service.
    """

    caller: str
    incarnation: int
    number: int
    attempt: int

    def of_observer(self) -> bool:
        """Returns whether an observer called; the driver is one, too."""
        return self.incarnation == OBSERVER

    def of_driver(self) -> bool:
        """Returns whether the driver called, which asks for the result of the run."""
        return self.caller == DRIVER_LABEL

    def for_checkpoint(self) -> bool:
        """Returns whether the reply is a state with which a service may begin again."""
        return self.of_observer() and not self.of_driver()


class Served(NamedTuple):
    """A service served a call; `version` is None if it is not known."""

    call: CallName
    version: int | None


class Answered(NamedTuple):
    """A service was given the answer to a call of its own, or learned that the other one died."""

    number: int
    attempt: int
    died: bool


class Note(NamedTuple):
    """A service noted something that a replay does not need."""

    kind: str
    name: str
    number: int


Event = Served | Answered | Note


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
        self._lock = threading.RLock()
        self._streams: list[ServiceStream | Seen] = []
        self._lines, self._broken = 1, False

    def service(
        self, service: str, incarnation: int = 0, state: int | None = None
    ) -> ServiceStream:
        """Makes the stream for the events of one incarnation of a service.

        Args:
          service: the name of the service.
          incarnation: how often it had failed before.
          state: the number of the call that returned the checkpointed state with which it begins;
            None: it begins without one.
        """
        made = ServiceStream({"service": service, "incarnation": incarnation}, self)
        self._add(made, made.about | {"state": state}, incarnation)
        return made

    def seen(self, caller: str, incarnation: int = 0) -> Seen:
        """Makes the streams for what one incarnation of a caller sees."""
        made = Seen({"node": caller, "incarnation": incarnation}, self)
        self._add(made, made.about, incarnation)
        return made

    def flush(self) -> None:
        """Writes all entries that are still buffered.

        In a process that may be killed, call this before any message leaves the process. Then
        everything on which the effects of the message depend is in the log.
        """
        with self._lock:
            for stream in self._streams:
                stream.flush()

    def end(self) -> None:
        """Flushes the log, and writes the line that marks it as complete."""
        self.flush()
        self._line({"end": self._lines})

    def defers_arithmetic(self) -> None:
        """Records that the runtime allows programs to put arithmetic off (see `Runtime`)."""
        self._line({"defers arithmetic": True})

    def no_replay(self, why: str, *, has_all_calls: bool = False) -> None:
        """Records that the run cannot be replayed from this log, and why.

        Args:
          why: the reason.
          has_all_calls: whether the log has all calls all the same.
        """
        self._line({"no replay": why, "has all calls": has_all_calls})

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

    def _add(self, stream: ServiceStream | Seen, line: dict[str, Any], incarnation: int) -> None:
        with self._lock:
            self._streams.append(stream)
            if incarnation:  # the first one needs no line of its own
                self._line(line)

    def _line(self, entry: Mapping[str, Any]) -> None:
        self.take(json.dumps(entry, separators=(",", ":")) + "\n")


@final
class ServiceStream:
    """The log's stream for one incarnation of a service.

    One thread at a time may add to it, while others flush.
    """

    def __init__(self, about: dict[str, Any], log: EventLog) -> None:
        self.about, self._log = about, log
        self._lock = log._lock
        self._sources: dict[tuple[Any, ...], int] = {}
        self._events: list[int | None] = []  # source, number, value
        self._serving, self._place = self._events, 0  # where the version of the next reply belongs

    def serve(self, caller: str, incarnation: int, number: int, attempt: int) -> None:
        """Records that a call is served now, before anything that it leads to can leave."""
        events = self._append((caller, incarnation, attempt), number, None)
        self._serving, self._place = events, len(events) - 1

    def served(self, reply: Any) -> None:
        """Records the version in the reply to the call that was recorded last."""
        self._serving[self._place] = version_of(reply)

    def answered(self, number: int, attempt: int, died: bool) -> None:
        """Records that the service is given the answer to a call of its own now."""
        self._append((attempt,), number, int(died))

    def note(self, kind: str, name: str, number: int) -> None:
        """Records anything else that happens while a call is served; a replay ignores it."""
        self._append((kind, name), number, 0)

    def flush(self) -> None:
        """Writes the buffered events as one line."""
        with self._lock:
            sources, events = list(self._sources), self._events
            self._sources, self._events = {}, []
            if events:
                self._log._line(self.about | {"sources": sources, "events": events})

    def _append(self, source: tuple[Any, ...], number: int, value: int | None) -> list[int | None]:
        """Adds an event; returns the batch that has it, which another thread may write at once."""
        with self._lock:
            if len(self._events) >= 3 * _BATCH:
                self.flush()
            index = self._sources.setdefault(source, len(self._sources))
            self._events += (index, number, value)
            return self._events


@final
class Seen:
    """The log's streams for one incarnation of a caller, one for each kind of observation.

    Any thread may add to them.
    """

    def __init__(self, about: dict[str, Any], log: EventLog) -> None:
        self.about, self._log = about, log
        self._lock = log._lock
        self._seen: dict[str, list[Any]] = collections.defaultdict(list)
        self._places: dict[str, itertools.count[int]] = collections.defaultdict(itertools.count)

    def place(self, kind: str) -> int:
        """Returns a number for an observation of this kind that is made later: 0, 1, 2, ..."""
        return next(self._places[kind])

    def add(self, kind: str, value: Any, *, rare: bool = False) -> None:
        """Records a value that the caller saw.

        Args:
          kind: the kind of observation.
          value: the value.
          rare: whether it is written at once, since a batch of its kind may never become full.
        """
        with self._lock:
            stream = self._seen[kind]
            stream.append(value)
            if rare or len(stream) >= _BATCH:
                self.flush()  # all kinds, so that all of them end at about the same time

    def flush(self) -> None:
        """Writes the buffered values, one line for each kind."""
        with self._lock:
            seen, self._seen = self._seen, collections.defaultdict(list)
            for kind, values in seen.items():
                self._log._line(self.about | {"kind": kind, "seen": values})


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
      defers_arithmetic: whether the runtime allowed programs to put arithmetic off.
      no_replay: why the run cannot be replayed; None: it can.
      has_all_calls: whether the log of a run that cannot be replayed has all calls all the same.
      breaks_off: the place at which the log breaks off, such as "after line 7"; None: the log is
        complete.

    Raises:
      ValueError: the lines are not an event log, the log has another version, or it is damaged
        before its first call or observation.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self.defers_arithmetic = False
        self.no_replay: str | None = None
        self.has_all_calls = True
        self.breaks_off: str | None = "after line 1"
        self._events: dict[Incarnation, list[Event]] = {}
        self._states: dict[Incarnation, int | None] = {}
        self._seen: dict[Incarnation, dict[str, list[Any]]] = {}
        self._servers: dict[CallName, Incarnation] = {}
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
                if not self._events and not self._seen:
                    raise ValueError(
                        f"this event log is damaged from line {number} on, and holds nothing "
                        f"before that: {type(error).__name__}: {error}"
                    ) from error
                whole = False
            if not whole:
                self.breaks_off = f"in line {number}"
                return
            self.breaks_off = f"after line {number}"

    def services(self) -> Sequence[Incarnation]:
        """Returns the incarnations of all services that served a call, or that came back."""
        return list(self._events)

    def events(self, service: str, incarnation: int = 0) -> Sequence[Event]:
        """Returns the events of one incarnation of a service, in order."""
        return self._events.get((service, incarnation), [])

    def state(self, service: str, incarnation: int) -> int | None:
        """Returns the number of the call that returned the state with which a service began."""
        return self._states.get((service, incarnation))

    def seen(self, caller: str, incarnation: int, kind: str) -> Sequence[Any]:
        """Returns what one incarnation of a caller saw of one kind, in order."""
        return self._seen.get((caller, incarnation), {}).get(kind, [])

    def callers(self) -> Sequence[Incarnation]:
        """Returns the incarnations of all callers that saw anything, or that came back."""
        return list(self._seen)

    def incarnations(self, name: str, *, of_service: bool) -> int:
        """Returns the number of incarnations of a service, or of a process."""
        known = self._events if of_service else self._seen
        return 1 + max((life for label, life in known if label == name), default=0)

    def server(self, call: CallName) -> Incarnation | None:
        """Returns the incarnation of the service that served a call; None: none did."""
        return self._servers.get(call)

    def last_asked(self) -> dict[str, Incarnation]:
        """Returns the copy of each service that the driver asked last: it has the run's result."""
        asked = sorted(
            (call.number, call.attempt, server)
            for call, server in self._servers.items()
            if call.of_driver()
        )
        return {service_name(server[0]): server for _, _, server in asked}

    def count(self) -> int:
        """Returns the number of calls that all services served, without those of observers."""
        return sum(not call.of_observer() for call in self._servers)

    def _take(self, entry: dict[str, Any]) -> None:
        if "no replay" in entry:
            self.no_replay = entry["no replay"]
            self.has_all_calls &= entry["has all calls"]
        elif "defers arithmetic" in entry:
            self.defers_arithmetic = True
        elif "service" in entry:
            self._take_events((entry["service"], entry["incarnation"]), entry)
        else:
            self._take_seen((entry["node"], entry["incarnation"]), entry)

    def _take_events(self, server: Incarnation, entry: dict[str, Any]) -> None:
        if "state" in entry:
            self._states[server] = entry["state"]
        flat, sources = iter(entry.get("events", [])), entry.get("sources", [])
        made = [_event(sources[s], n, value) for s, n, value in zip(flat, flat, flat, strict=True)]
        self._events.setdefault(server, []).extend(made)
        self._servers |= {event.call: server for event in made if isinstance(event, Served)}

    def _take_seen(self, caller: Incarnation, entry: dict[str, Any]) -> None:
        kind, seen = entry.get("kind", "now"), entry.get("seen", [])
        if kind in ("first", "failed", "died"):
            _require_integers(x for one in seen for x in (one[0], one[1] or 0))
        elif kind.startswith(("landed", "arrivals")):
            _require_integers(seen)
        self._seen.setdefault(caller, {}).setdefault(kind, []).extend(seen)


def _event(source: list[Any], number: int, value: int | None) -> Event:
    """Returns an event from its form in the log."""
    _require_integers((number, value or 0))
    if len(source) == 1:
        return Answered(number, source[0], bool(value))
    if len(source) == 2:
        return Note(source[0], source[1], number)
    caller, incarnation, attempt = source
    _require_integers((incarnation, attempt))
    return Served(CallName(caller, incarnation, number, attempt), value)


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
