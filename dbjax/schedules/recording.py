"""Makes a `Schedule` from recorded arithmetic (`dbjax.parameter_server.abstract`)."""

from __future__ import annotations

import itertools

import numpy as np

from dbjax.parameter_server.abstract import ArithmeticRecorder, DependsOnValues
from dbjax.schedules.schedule import Ints, Schedule


def schedule_of(recorder: ArithmeticRecorder, versions: tuple[int, ...]) -> tuple[Schedule, Ints]:
    """Returns the schedule of a run whose arithmetic was recorded.

    Pushes are in the order in which replicas began to compute their last gradients. A gradient
    that no shard has applied, since the run ended or the replica failed, counts as a push of its
    own.

    Args:
      recorder: the recorded arithmetic.
      versions: the versions of the shards at the end.

    Returns:
      The schedule, and for each number of a recorded gradient its index in the schedule.

    Raises:
      DependsOnValues: a push carries gradients in a way that a schedule cannot describe, or a shard
        has lost updates.
    """
    if versions != tuple(map(len, recorder.updates)):
        raise DependsOnValues("a shard goes back to a checkpoint")
    updates = list(itertools.chain.from_iterable(recorder.updates))
    carried = dict.fromkeys(gradients for gradients, _, _ in updates)
    means = {mean for _, mean, _ in updates}
    used = set(itertools.chain.from_iterable(carried))
    groups = [
        *carried,
        *((number,) for number in range(len(recorder.gradients)) if number not in used),
    ]
    _require_each_once(groups, len(recorder.gradients))
    groups.sort(key=lambda group: group[-1] if len(group) == 1 else max(group))
    push_of = {group: push for push, group in enumerate(groups)}
    order = np.array(list(itertools.chain.from_iterable(groups)), np.int32)
    index = np.empty_like(order)
    index[order] = np.arange(len(order))
    position = np.full((len(groups), len(recorder.updates)), -1, np.int32)
    time_s = np.full(position.shape, np.nan)
    for shard, of_shard in enumerate(recorder.updates):
        pushes = [push_of[gradients] for gradients, _, _ in of_shard]
        position[pushes, shard] = np.arange(len(pushes))
        time_s[pushes, shard] = [at_s for _, _, at_s in of_shard]
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
