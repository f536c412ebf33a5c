"""What a checkpoint says, and whether it fits the run that takes it up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import optax

from dbjax.checkpoint.encoding import resolve_nodes
from dbjax.checkpoint.exact import ExactState
from dbjax.checkpoint.trees import Structures, node_of
from dbjax.model_parallel.sharding import path_name
from dbjax.optim.elementwise import require_server_rule, transforms_of
from dbjax.parameter_server.partition import Partition, Piece
from dbjax.parameter_server.reshard import redistribute_pushes, reshard
from dbjax.runtime.node_names import NodeKind, kind_of
from dbjax.runtime.trace import Row
from dbjax.types import Params


@dataclasses.dataclass(frozen=True)
class StoredCheckpoint:
    """Where a checkpoint lies.

    Attributes:
      path: its directory.
      earlier: reads the one before it; None: there is none that can be read.
    """

    path: Path
    earlier: Callable[[], CheckpointState | None]


@dataclasses.dataclass(frozen=True)
class RunSignature:
    """What a checkpoint must have in common with the run that takes it up.

    Attributes:
      about: names and what must be the same under them.
      structures: of the run's pytrees.
    """

    about: dict[str, str]
    structures: Structures


class CannotRestore(ValueError):
    """A checkpoint was read, and a run of its kind cannot be brought to where it says."""


@dataclasses.dataclass(frozen=True)
class CheckpointState:
    """A checkpoint.

    Attributes:
      about: what must be the same in the run that takes it up, see `run_signature`.
      replicas: there were.
      pieces: which shard holds what.
      shards: their states, in order.
      incarnation: how often the run was taken up before, but for exactly.
      time_s: on the run's clock.
      rows: of the trace, those that later numbers need.
      exact: of a virtual run: where it stood, to the last bit; None: not known.
      stored: where it lies; None: in memory.
    """

    about: dict[str, str]
    replicas: int
    pieces: tuple[tuple[Piece, ...], ...]
    shards: tuple[Any, ...]
    incarnation: int
    time_s: float
    rows: tuple[Row, ...] = ()
    exact: ExactState | None = None
    stored: StoredCheckpoint | None = dataclasses.field(default=None, compare=False)

    def states(self, expected: RunSignature, replicas: int, partition: Partition) -> list[Any]:
        """The shards' states for a run of that many shards and replicas.

        Raises:
          ValueError: it is of another model, algorithm or rule; names the first difference.
          NotRestored: it is of the same, and its shards' states are none all the same.
        """
        self._require_of(expected)
        try:
            shards = [resolve_nodes(shard, expected.structures) for shard in self.shards]
            old = dataclasses.replace(partition, shards=self.pieces)
            return redistribute_pushes(reshard(shards, old, partition), self.replicas, replicas)
        except Exception as error:
            raise CannotRestore(f"{type(error).__name__}: {error}") from error

    def _require_of(self, expected: RunSignature) -> None:
        for name in {**expected.about, **self.about}:
            have, want = self.about.get(name, "not there"), expected.about.get(name, "not there")
            if have != want:
                raise ValueError(
                    f"the checkpoint is of another run: {name} is {have}, here it is {want}; "
                    "resume with the same, or begin anew in another workdir"
                )


def run_signature(params: Params, config: Any) -> RunSignature:
    """The method, its rule's state, and every parameter's type and shape."""
    rules = _rules(config)
    states = _rule_states(params, rules)
    found = {"algorithm": type(config).__module__}
    if hasattr(config, "method"):
        found["method"] = type(config.method).__name__
    found |= _described("params", params)
    if "rule" in states:
        found |= _described("rule", states["rule"])
    found |= {f"the transforms of {name}": transforms_of(rule) for name, rule in rules.items()}
    return RunSignature(found, Structures(params, *states.values()))


def _rules(config: Any) -> dict[str, optax.GradientTransformation]:
    """Those in a method's config, by the names of their fields."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {
        name: rule
        for name, rule in fields.items()
        if isinstance(rule, optax.GradientTransformation)
    }


def _rule_states(params: Params, rules: dict[str, optax.GradientTransformation]) -> dict[str, Any]:
    """What the rules would begin with: shapes and types.

    Raises:
      ValueError: a rule cannot run on these parameters.
    """
    for rule in rules.values():
        require_server_rule(rule, params)
    return {name: jax.eval_shape(rule.init, params) for name, rule in rules.items()}


def _described(name: str, tree: Any) -> dict[str, str]:
    """The class of every node, the type and shape of every leaf, by paths below `name`."""
    found, inner = {}, [((), tree)]
    while inner:
        path, value = inner.pop(0)
        node = node_of(value)
        where = f"{name}/{path_name(path)}" if path else name
        if node is not None:
            found[where] = type(value).__name__
            inner[:0] = _children(path, value)
        else:
            where = f"{name}/{path_name(path)}"
            found[where] = f"{value.dtype}{list(value.shape)}"
    return found


def _children(path: tuple[Any, ...], value: Any) -> list[tuple[tuple[Any, ...], Any]]:
    one_level = jax.tree_util.tree_leaves_with_path(value, is_leaf=lambda part: part is not value)
    return [((*path, *step), child) for step, child in one_level]


def rows_to_keep(rows: Sequence[Row], recent_losses: int) -> tuple[Row, ...]:
    """Rows that later numbers need: all, but for replicas' losses before the latest ones.

    The last one of each replica tells how many of its pushes were acknowledged; the first of all
    what losses are held against.
    """
    losses = [i for i, row in enumerate(rows) if "loss" in row and _is_replica(row)]
    last = {rows[i]["node"]: i for i in losses}
    old = set(losses[1 : max(1, len(losses) - recent_losses)]) - set(last.values())
    return tuple(row for i, row in enumerate(rows) if i not in old)


def _is_replica(row: Row) -> bool:
    return kind_of(row["node"]) is NodeKind.REPLICA
