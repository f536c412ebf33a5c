"""Accounts for every push of a run by its identity, from the event log.

The replicas note in the log which pushes they saw acknowledged, and the shards which they applied.
Shards also say where their states come from: the initial parameters, a checkpoint, or the other
copy. So the log alone, without a replay, tells which pushes are in the final parameters.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dbjax.arguments import short_repr
from dbjax.runtime.context import of_service
from dbjax.runtime.event_log import CallName, Incarnation, Note, Script, Served
from dbjax.runtime.node_names import replica_of, service_name

_Place = tuple[Incarnation, int]  # an incarnation of a service, and how many of its events precede


class PushId(NamedTuple):
    """The identity of a push, which repetitions of it share.

    Attributes:
      shard: the name of the shard.
      replica: the name of the replica.
      sequence: the number of the push among the replica's pushes: 0, 1, 2, ...
    """

    shard: str
    replica: str
    sequence: int


class PushAccount(NamedTuple):
    """What became of the pushes of a run.

    Attributes:
      acknowledged: the number of pushes that their replicas saw acknowledged.
      applied: the number of applications of pushes that the final parameters contain.
      lost: the pushes that were acknowledged, but are not in the final parameters.
      doubled: the pushes that the final parameters contain more than once.
    """

    acknowledged: int
    applied: int
    lost: Sequence[PushId]
    doubled: Sequence[PushId]


def account_for_pushes(script: Script) -> PushAccount:
    """Finds out which pushes of a run were lost, and which were applied twice.

    Args:
      script: the event log of the run, `dbjax.Script(lines)`.

    Raises:
      TypeError: `script` is not a Script.
      ValueError: the log breaks off, or the run was resumed from a checkpoint, so that the log does
        not have all pushes.
    """
    if not isinstance(script, Script):
        raise TypeError(
            f"script={short_repr(script)} is not a Script: give dbjax.Script(lines) of the log"
        )
    if script.breaks_off is not None:
        raise ValueError(
            f"the event log breaks off {script.breaks_off}, so it does not have all pushes"
        )
    if script.no_replay is not None and not script.has_all_calls:
        raise ValueError(f"the event log does not have all pushes: {script.no_replay}")
    acknowledged = {
        PushId(shard, replica_of(caller), sequence)
        for caller, life in script.callers()
        for shard, sequence in script.seen(caller, life, "acknowledged")
    }
    applied = collections.Counter(_applied(script))
    lost = sorted(acknowledged - applied.keys())
    doubled = sorted(push for push, times in applied.items() if times > 1)
    return PushAccount(len(acknowledged), applied.total(), lost, doubled)


def _applied(script: Script) -> Iterator[PushId]:
    """Yields every application of a push that the final states of all shards contain."""
    checkpoints, installs = _checkpoints(script), _installs(script)
    for shard, final in script.last_asked().items():
        origin: _Place | None = final, len(script.events(*final))
        while origin is not None:
            server, end = origin
            events = script.events(*server)[:end]
            origin = checkpoints.get((shard, script.state(*server)))
            begin = 0
            for i, event in enumerate(events):
                if isinstance(event, Served) and event.call in installs:
                    begin, origin = i, installs[event.call]
            notes = (event for event in events[begin:] if isinstance(event, Note))
            for note in notes:
                if note.kind == "applied":
                    yield PushId(shard, note.name, note.number)


def _checkpoints(script: Script) -> dict[tuple[str, int | None], _Place]:
    """Returns where each checkpoint was taken, by the service and the number of the call.

    If both copies of a service were asked, the second one answered.
    """
    asked = sorted(
        (event.call.number, event.call.attempt, server, i)
        for server in script.services()
        for i, event in enumerate(script.events(*server))
        if isinstance(event, Served) and event.call.for_checkpoint()
    )
    return {(service_name(server[0]), number): (server, i) for number, _, server, i in asked}


def _installs(script: Script) -> dict[CallName, _Place]:
    """Returns where a copy sent its state to the other copy, by the call that had the state."""
    return {
        CallName(of_service(server[0]), server[1], event.number, 0): (server, i)
        for server in script.services()
        for i, event in enumerate(script.events(*server))
        if isinstance(event, Note) and event.kind == "installs"
    }
