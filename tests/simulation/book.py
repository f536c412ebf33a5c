"""What was seen of a run from outside: calls and their replies, updates, deaths."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dbjax.parameter_server import Snapshot

History = tuple[tuple[str, int], ...]  # of a shard's parameters: (replica, sequence), in order


class Violation(Exception):
    """An invariant does not hold."""


@dataclasses.dataclass
class Called:
    """A call to a shard, as its caller sees it.

    Attributes:
      lost: how often the shard had lost everything when it was made, and when it was answered.
    """

    shard: int
    caller: str
    method: str
    args: tuple[Any, ...]
    lost: list[int]
    reply: Any = None
    answered: bool = False


class Copies:
    """The copies of one shard: which of them have what it knows."""

    def __init__(self, names: list[str]) -> None:
        self.has = dict.fromkeys(names, True)
        self.lost = 0  # how often none had

    def died(self, name: str) -> None:
        before = any(self.has.values())
        self.has[name] = False
        self.lost += before and not any(self.has.values())

    def given(self, name: str) -> None:
        """By the other copy; or it goes on with what there is, since nobody knows more."""
        self.has[name] = True


class Book:
    """Takes notes.

    Attributes:
      calls: to shards, in the order in which they were made.
      answers: those that were answered, in the order in which they were.
      histories: of every snapshot that a shard made, by its id.
      faults: what was found wrong at once.
      repeated: how many pushes were sent twice.
    """

    def __init__(self, copies: dict[int, Copies]) -> None:
        self.copies = copies
        self.calls: list[Called] = []
        self.answers: list[Called] = []
        self.histories: dict[int, tuple[Snapshot, History]] = {}
        self.values: dict[int, tuple[Snapshot, dict[str, Any]]] = {}
        self.portions: dict[int, set[int]] = {}  # asked for, by evaluation
        self.closed: set[int] = set()
        self.faults: list[str] = []
        self.events = self.repeated = 0

    def note(self, row: dict[str, Any]) -> None:
        """A row of the trace."""
        if row.get("event") == "died" and (found := self.of(row["node"])) is not None:
            self.copies[found].died(row["node"])

    def of(self, node: str) -> int | None:
        """Which shard lives on a node."""
        return next((i for i, copies in self.copies.items() if node in copies.has), None)

    def keep(self, snapshot: Snapshot) -> None:
        """Its values, to be compared at the end."""
        if id(snapshot) not in self.values:
            values = {name: np.array(piece) for name, piece in snapshot.params.items()}
            self.values[id(snapshot)] = (snapshot, values)

    def history(self, snapshot: Snapshot) -> History:
        return self.histories[id(snapshot)][1]
