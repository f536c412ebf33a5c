"""What a checkpoint says, and whether it fits the run that takes it up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from dbjax.checkpoint.exact import Exact
from dbjax.parallel.cut import name_of
from dbjax.store.partition import Partition, Piece
from dbjax.store.recut import dealt_anew, recut
from dbjax.trace import Row
from dbjax.types import Params


@dataclasses.dataclass(frozen=True)
class Content:
    """A checkpoint.

    Attributes:
      about: what must be the same in the run that takes it up, see `about`.
      replicas: there were.
      pieces: which shard holds what.
      shards: their states, in order.
      incarnation: how often the run was taken up before, but for exactly.
      time_s: on the run's clock.
      rows: of the trace, those that later numbers need.
      exact: of a virtual run: where it stood, to the last bit; None: not known.
    """

    about: dict[str, str]
    replicas: int
    pieces: tuple[tuple[Piece, ...], ...]
    shards: tuple[Any, ...]
    incarnation: int
    time_s: float
    rows: tuple[Row, ...] = ()
    exact: Exact | None = None

    def states(self, expected: dict[str, str], cuts: Partition, replicas: int) -> list[Any]:
        """The shards' states for a run of that many shards and replicas.

        Raises:
          ValueError: it is of another model or algorithm; names the first difference.
        """
        for name in {**expected, **self.about}:
            have, want = self.about.get(name, "not there"), expected.get(name, "not there")
            if have != want:
                raise ValueError(
                    f"the checkpoint is of another run: {name} is {have}, here it is {want}; "
                    "give another --workdir"
                )
        old = Partition(cuts.treedef, self.pieces)
        return dealt_anew(recut(self.shards, old, cuts), self.replicas, replicas)


def about(params: Params, config: Any) -> dict[str, str]:
    """The method, and every parameter's type and shape."""
    leaves = {
        f"params/{name_of(path)}": f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    return {"algorithm": type(config).__module__, **leaves}


def lasting(rows: Sequence[Row], recent_losses: int) -> tuple[Row, ...]:
    """Rows that later numbers need: all, but for replicas' losses before the latest ones.

    The last one of each replica tells how many of its pushes were acknowledged; the first of all
    what losses are held against.
    """
    losses = [i for i, row in enumerate(rows) if "loss" in row and _is_replica(row)]
    last = {rows[i]["node"]: i for i in losses}
    old = set(losses[1 : max(1, len(losses) - recent_losses)]) - set(last.values())
    return tuple(row for i, row in enumerate(rows) if i not in old)


def _is_replica(row: Row) -> bool:
    return str(row["node"]).startswith("replica/")
