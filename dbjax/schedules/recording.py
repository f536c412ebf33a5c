"""Makes a `Schedule` from recorded arithmetic (`dbjax.parameter_server.abstract`)."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import optax

from dbjax.parameter_server.abstract import ArithmeticRecorder, DependsOnValues
from dbjax.schedules.schedule import Ints, Schedule
from dbjax.types import LossFn


class Recorded(NamedTuple):
    """The recorded arithmetic of a run.

    Attributes:
      schedule: the schedule.
      indices: for each number of a recorded gradient, its index in the schedule, int32 [K].
      rule: the rule that the shards apply.
      local_rule: the rule of local steps; `rule` if there are none.
      loss: the loss whose gradients are computed.
      replicas: the number of replicas among which the data is divided.
    """

    schedule: Schedule
    indices: Ints
    rule: optax.GradientTransformation
    local_rule: optax.GradientTransformation
    loss: LossFn
    replicas: int


def recorded(recorder: ArithmeticRecorder, versions: tuple[int, ...], batch_size: int) -> Recorded:
    """Returns the recorded arithmetic of a run, with its schedule.

    Pushes are in the order in which replicas began to compute their last gradients. A gradient
    that no shard has applied, since the run ended or the replica failed, counts as a push of its
    own.

    Args:
      recorder: the recorded arithmetic.
      versions: the versions of the shards at the end.
      batch_size: the number of examples in a mini-batch.

    Raises:
      DependsOnValues: the run did what a compiled program does not, or a shard has lost updates.
    """
    schedule, index = _schedule(recorder, versions, batch_size)
    divided = {gradient.replicas for gradient in recorder.gradients} or {1}
    local_rules = recorder.local_rules or {recorder.rule}
    if len(divided) > 1 or len(local_rules) > 1:
        raise DependsOnValues("its replicas divide the data, or take local steps, differently")
    (replicas,), (local_rule,) = divided, local_rules
    return Recorded(schedule, index, recorder.rule, local_rule, recorder.loss, replicas)


def with_functions_of(recorder: ArithmeticRecorder, found: Recorded) -> Recorded:
    """Returns recorded arithmetic with the rules and the loss of a recorder."""
    (local_rule,) = recorder.local_rules or {recorder.rule}
    return found._replace(rule=recorder.rule, local_rule=local_rule, loss=recorder.loss)


def _schedule(
    recorder: ArithmeticRecorder, versions: tuple[int, ...], batch_size: int
) -> tuple[Schedule, Ints]:
    if versions != tuple(map(len, recorder.updates)):
        raise DependsOnValues("a shard goes back to a checkpoint")
    updates = list(itertools.chain.from_iterable(recorder.updates))
    if any(examples != batch_size * len(gradients) for gradients, _, _, examples in updates):
        raise DependsOnValues("a push says that it saw another number of examples than it did")
    carried = dict.fromkeys(gradients for gradients, _, _, _ in updates)
    means = {mean for _, mean, _, _ in updates}
    used = set(itertools.chain.from_iterable(carried))
    groups = [
        *carried,
        *((number,) for number in range(len(recorder.gradients)) if number not in used),
    ]
    _require_each_once(groups, len(recorder.gradients))
    groups.sort(key=max)
    push_of = {group: push for push, group in enumerate(groups)}
    order = np.array(list(itertools.chain.from_iterable(groups)), np.int32)
    index = np.empty_like(order)
    index[order] = np.arange(len(order))
    position = np.full((len(groups), len(recorder.updates)), -1, np.int32)
    time_s = np.full(position.shape, np.nan)
    for shard, of_shard in enumerate(recorder.updates):
        pushes = [push_of[gradients] for gradients, _, _, _ in of_shard]
        position[pushes, shard] = np.arange(len(pushes))
        time_s[pushes, shard] = [at_s for _, _, at_s, _ in of_shard]
    found = [recorder.gradients[number] for number in order]
    _require_chains(recorder)
    stepped = np.zeros(len(order), bool)
    stepped[index[list(recorder.stepped)]] = True
    return Schedule(
        replica=np.array([g.replica for g in found], np.int32),
        step=np.array([g.step for g in found], np.int32),
        version=np.array([g.versions for g in found], np.int32).reshape(-1, len(recorder.updates)),
        own=np.array([g.after >= 0 for g in found], bool),
        stepped=stepped,
        life=np.array([g.life for g in found], np.int32),
        push=np.repeat(np.arange(len(groups)), list(map(len, groups))),
        position=position,
        time_s=time_s,
        mean=means == {True},
    ), index


def _require_each_once(groups: list[tuple[int, ...]], count: int) -> None:
    """Raises DependsOnValues if two different pushes carry the same gradient."""
    if sum(map(len, groups)) != count:
        raise DependsOnValues("two pushes carry the same gradient")


def _require_chains(recorder: ArithmeticRecorder) -> None:
    """Raises DependsOnValues if a replica goes back to parameters that it had before."""
    latest: dict[int, tuple[int, int]] = {}  # of each replica: the gradient before, and its life
    for number, gradient in enumerate(recorder.gradients):
        if gradient.after >= 0 and latest.get(gradient.replica) != (gradient.after, gradient.life):
            raise DependsOnValues("a replica goes back to parameters that it had before")
        latest[gradient.replica] = number, gradient.life
