"""The content of a checkpoint, and whether it fits the run that resumes from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import optax

from dbjax.checkpoint.compiled import CompiledState
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
    """The place of a checkpoint on disk.

    Attributes:
      path: the directory of the checkpoint.
      earlier: reads the checkpoint before it; returns None if there is none that can be read.
    """

    path: Path
    earlier: Callable[[], CheckpointState | None]


@dataclasses.dataclass(frozen=True)
class RunSignature:
    """What a checkpoint must have in common with the run that resumes from it.

    Attributes:
      about: properties that must be equal, by their names.
      structures: the nodes of the run's pytrees.
    """

    about: dict[str, str]
    structures: Structures


class CannotRestore(ValueError):
    """A checkpoint of the right kind of run was read, but its state cannot be restored."""


@dataclasses.dataclass(frozen=True)
class CheckpointState:
    """The content of a checkpoint.

    Attributes:
      about: properties that must be equal in the run that resumes from it, see `run_signature`.
      replicas: the number of replicas.
      pieces: the pieces of the parameters that each shard holds.
      shards: the state of each shard, in order.
      incarnation: how many times the run was resumed before, not counting exact resumptions.
      time_s: the time of the checkpoint, in seconds on the run's clock.
      rows: the rows of the trace that later statistics need.
      exact: the exact state of a virtual run, to the last bit; None: it was not saved.
      compiled: the exact state of a compiled run; None: it was not one.
      stored: the place of the checkpoint on disk; None: it is only in memory.
    """

    about: dict[str, str]
    replicas: int
    pieces: tuple[tuple[Piece, ...], ...]
    shards: tuple[Any, ...]
    incarnation: int
    time_s: float
    rows: tuple[Row, ...] = ()
    exact: ExactState | None = None
    compiled: CompiledState | None = None
    stored: StoredCheckpoint | None = dataclasses.field(default=None, compare=False)

    def states(self, expected: RunSignature, replicas: int, partition: Partition) -> list[Any]:
        """Returns the states of the shards, resharded for the run that resumes.

        Args:
          expected: the signature of the run that resumes.
          replicas: its number of replicas.
          partition: the partition of its parameters.

        Returns:
          The state of each shard under `partition`.

        Raises:
          ValueError: the checkpoint belongs to another model, algorithm or rule; the message names
            the first difference.
          CannotRestore: the signatures are equal, but the shards' states cannot be restored.
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
                    "resume with the same setting, or start a new run in another workdir"
                )


def run_signature(params: Params, config: Any) -> RunSignature:
    """Returns the signature of a run.

    It holds the algorithm, its batch method, the structure and transforms of its rules, and the
    structure, dtypes and shapes of the parameters.

    Args:
      params: the parameters, a pytree of arrays or of their shapes and dtypes.
      config: the configuration of the algorithm.

    Raises:
      ValueError: a rule cannot run on these parameters.
    """
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
    """Returns the optax rules in a method's config, by the names of their fields."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {
        name: rule
        for name, rule in fields.items()
        if isinstance(rule, optax.GradientTransformation)
    }


def _rule_states(params: Params, rules: dict[str, optax.GradientTransformation]) -> dict[str, Any]:
    """Returns the shapes and dtypes of the rules' initial states, by the rules' names.

    Raises:
      ValueError: a rule cannot run on these parameters.
    """
    for rule in rules.values():
        require_server_rule(rule, params)
    return {name: jax.eval_shape(rule.init, params) for name, rule in rules.items()}


def _described(name: str, tree: Any) -> dict[str, str]:
    """Returns the class of every node, and the dtype and shape of every leaf, by their paths."""
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
    """Returns the rows of a trace that later statistics need.

    These are all rows except old losses of replicas. The last loss of each replica is kept because
    it shows how many of its pushes were acknowledged, and the first loss of all because later
    losses are compared with it.

    Args:
      rows: the rows of the trace.
      recent_losses: the number of latest losses to keep.
    """
    losses = [i for i, row in enumerate(rows) if "loss" in row and _is_replica(row)]
    last = {rows[i]["node"]: i for i in losses}
    old = set(losses[1 : max(1, len(losses) - recent_losses)]) - set(last.values())
    return tuple(row for i, row in enumerate(rows) if i not in old)


def _is_replica(row: Row) -> bool:
    return kind_of(row["node"]) is NodeKind.REPLICA
