"""The timings of the latest runs, which runs that differ only in constants share.

When a replica computes, and when a shard applies what it has computed, depends on sizes, durations
and the method, but neither on rates, nor on the order of the data, nor on initial values. So the
runs of a sweep need their timing once.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from dbjax.executors.setup import Setup
from dbjax.monitoring.evaluator import schedule
from dbjax.parameter_server.abstract import unless_recordable
from dbjax.parameter_server.optimizer import checked_trees, server_rule
from dbjax.parameter_server.partition import partition_params
from dbjax.runtime.cluster import Cluster
from dbjax.schedules.timing import TimedRun
from dbjax.validation import algorithm_of

_LARGEST = 100_000  # updates of shards, of one run
_KEPT = 8  # runs
_METHODS = "dbjax.algorithms."  # a method of one's own may look at its rules


class _Key(NamedTuple):
    """What a timing depends on; the run's seed counts only if the method draws random numbers."""

    method: Any
    config: Any
    shapes: Any
    examples: tuple[int, int]
    cluster: Any
    times: Any


class _Kept(NamedTuple):
    key: _Key
    config: Any
    seed: int
    timed: TimedRun


_latest: list[_Kept] = []  # the latest one is the last
_lock = threading.Lock()


class Found(NamedTuple):
    """The timing of a run.

    Attributes:
      timed: the run without arithmetic; it has ended if it is shared.
      keep: is called when the run has ended without an interrupt, so that later runs may share it.
    """

    timed: TimedRun
    keep: Callable[[], None]


def timed_run(setup: Setup, until_s: float) -> Found:
    """Returns a run without arithmetic, as it would be if it ended at that time.

    If a recent run differs only in constants, its timing is shared.
    """
    key = _key(setup, until_s)
    with _lock:
        for kept in reversed(_latest):
            if kept.key == key and (kept.seed == setup.seed or not kept.timed.randomness):
                pairs = zip(_rules(kept.config), _rules(setup.config), strict=True)
                shared = kept.timed.replacing(dict(pairs), setup.task.loss)
                if shared is not None:
                    _latest.remove(kept)
                    _latest.append(kept)
                    return Found(shared, lambda: None)
    timed = TimedRun(
        setup.task,
        setup.config,
        setup.cluster,
        until_s=until_s,
        evaluations=schedule(setup.evaluate_every_s, setup.until_s, ()),
        seed=setup.seed,
        max_spans=setup.trace.max_spans,
        checkpoint_every=setup.checkpoint_every,
        saves=setup.checkpoints is not None,
    )

    def keep() -> None:
        if key is None or not timed.ended:
            return
        table = timed.timing().schedule
        if table.gradients * table.shards <= _LARGEST:
            with _lock:
                _latest.append(_Kept(key, setup.config, setup.seed, timed))
                del _latest[:-_KEPT]

    return Found(timed, keep)


def _key(setup: Setup, until_s: float) -> _Key | None:
    """Returns what the timing of a run depends on; None: it is not shared."""
    task, config = setup.task, setup.config
    method = algorithm_of(config)
    cluster = (setup.cluster or Cluster()).seeded(setup.seed)
    if not method.__name__.startswith(_METHODS) or callable(cluster.compute_s):
        return None
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name, value in fields.items():
        if isinstance(value, optax.GradientTransformation):
            fields[name] = _state_shapes(setup) if name == "rule" else value == config.rule
    leaves, structure = jax.tree.flatten(task.shapes)
    shapes = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    evaluated = setup.evaluate_every_s, setup.until_s
    saved = setup.checkpoint_every, setup.checkpoints is not None
    times = until_s, evaluated, saved, setup.trace.max_spans
    examples = len(task.examples), task.batch_size
    of_config = type(config), _frozen(fields)
    return _Key((method, method.program), of_config, shapes, examples, _frozen(cluster), times)


def _frozen(value: Any) -> Any:
    """Returns a copy that nobody changes, and that is equal to those with the same content."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return type(value), tuple(_frozen(getattr(value, field.name)) for field in fields)
    if isinstance(value, Mapping):
        return tuple((name, _frozen(one)) for name, one in value.items())  # in its order
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    if isinstance(value, (np.ndarray, jax.Array)):
        array = np.asarray(value)
        return array.dtype.str, array.shape, array.tobytes()
    return value


def _rules(config: Any) -> list[optax.GradientTransformation]:
    values = (getattr(config, field.name) for field in dataclasses.fields(config))
    return [value for value in values if isinstance(value, optax.GradientTransformation)]


def _state_shapes(setup: Setup) -> Any:
    """Returns the shapes of the states of the server rule, which backups are sent."""
    leaves, structure = jax.tree.flatten(setup.task.shapes)
    with unless_recordable():
        return _shapes_of(setup.config.rule, structure, tuple(leaves), setup.config.shards)


@functools.lru_cache(maxsize=16)
def _shapes_of(
    rule: optax.GradientTransformation, structure: Any, leaves: tuple[Any, ...], shards: int
) -> Any:
    shapes = jax.tree.unflatten(structure, leaves)
    partition = partition_params(shapes, shards)
    like = jax.eval_shape(partition.split, shapes)
    init = server_rule(rule, checked_trees(rule, partition, like)).init
    states = [jax.tree.leaves(jax.eval_shape(init, slice_)) for slice_ in like]
    return [[(leaf.shape, leaf.dtype) for leaf in state] for state in states]
