"""`run_many`: one schedule, and many trials that differ in their numbers."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from dbjax.arguments import require_seed
from dbjax.optim.inputs import as_rule
from dbjax.parameter_server.partition import compiled_join
from dbjax.schedules.compiled import Carry, CompiledArithmetic, Rule
from dbjax.schedules.execution import free_bytes
from dbjax.schedules.recording import Recorded
from dbjax.schedules.schedule import Schedule
from dbjax.schedules.turns import turns_of
from dbjax.task import Task
from dbjax.types import Params
from dbjax.validation import algorithm_of, require_task

_OVER = ("schedule", "seed", "rule", "params")
_METHODS = ("downpour", "ssp", "sgd")
_POINTS = 1000  # of a curve of losses, at the most
_SHARE = 0.5  # of the free memory
_MEASURED = 64  # turns
Trial = tuple[int, int]  # the numbers of its rule and of its initial parameters


@final
@dataclasses.dataclass(frozen=True)
class Many:
    """The results of many trials, as arrays; their first axes are those of `over`, in its order.

    Attributes:
      params: the final parameters, a pytree of arrays [*axes, ...].
      losses: mean training losses, each over `every` gradients in the order of the schedule,
        float32 [*axes, points].
      every: see `losses`.
      at_once: whether all trials of a seed were computed at once (`jax.vmap`), rather than each by
        itself.
    """

    params: Params
    losses: np.ndarray[Any, np.dtype[np.float32]]
    every: int
    at_once: bool


def run_many(
    task: Task,
    config: Any,
    schedule: Schedule | None = None,
    *,
    over: Mapping[str, Sequence[Any]],
    seed: int = 0,
    at_once: bool | None = None,
) -> Many:
    """Does the arithmetic of a schedule for many rules, data orders and initial parameters.

    Args:
      task: the task.
      config: the Config of the method; its rules are used where `over` has none.
      schedule: the schedule of all trials; None: `over` has several.
      over: what the trials differ in; every combination is a trial. "rule": server rules, such as
        `[optax.sgd(a) for a in rates]`; they are also the rules of local steps, unless the Config
        has one. Those that differ in rates, decay or momentum share one compiled program. "seed":
        seeds of the order of the data. "params": initial parameters, like those of the task.
        "schedule": schedules with equally many gradients, such as those of clusters with other
        seeds.
      seed: the seed of the order of the data, where `over` has none.
      at_once: whether to compute all trials of a seed at once, by `jax.vmap`; None: whichever a
        short measurement finds faster. Each by itself, they give the same bytes as `dbjax.run`.

    Raises:
      ValueError: `over` has another name, or nothing for one; the method is another one than
        Downpour SGD, SSP or SGD; the schedule is not one of the Config; or the trials cannot be
        computed at once.
    """
    require_task(task)
    for name, values in over.items():
        if name not in _OVER:
            raise ValueError(f"over has {name!r}; trials may differ in {', '.join(_OVER)}")
        if not len(values):
            raise ValueError(f"over[{name!r}] is empty: give at least one value")
    name = algorithm_of(config).__name__.removeprefix("dbjax.algorithms.")
    if name not in _METHODS:
        raise ValueError(
            f"the method {name} may compute something of its own: run_many is for "
            f"{', '.join(_METHODS)}; make a run for each trial, with dbjax.run"
        )
    schedules = _schedules(config, schedule, over)
    rules = [as_rule(f"over['rule'][{i}]", one) for i, one in enumerate(over.get("rule", ()))]
    seeds = [require_seed("over['seed']", one) for one in over.get("seed", (seed,))]
    starts = list(over.get("params", (None,)))
    trials = list(itertools.product(range(max(1, len(rules))), range(len(starts))))
    every = max(1, -(-schedules[0].gradients // _POINTS))
    found, together = [], at_once
    for table, one in itertools.product(schedules, seeds):
        group = _Group(dataclasses.replace(task, seed=one), config, table, rules, starts)
        if at_once:
            group.require_at_once(trials)
        if together is None:
            together = group.is_faster_at_once(trials)
        found.append(group.run(trials, every, together))
    sizes = len(schedules), len(seeds), max(1, len(rules)), len(starts)

    def shaped(*of_groups: Any) -> Any:
        """Gives an array of all trials the axes of `over`."""
        whole = jnp.stack(of_groups)
        whole = whole.reshape(*sizes, *whole.shape[2:])
        axes = [_OVER.index(name) for name in over]
        absent = [axis for axis in range(len(_OVER)) if axis not in axes]
        rest = range(len(_OVER), whole.ndim)
        return whole.transpose(*absent, *axes, *rest)[(0,) * len(absent)]

    params = jax.tree.map(shaped, *(params for params, _ in found))
    losses = np.asarray(shaped(*(losses for _, losses in found)))
    return Many(params, losses, every, bool(together))


def _schedules(
    config: Any, schedule: Schedule | None, over: Mapping[str, Sequence[Any]]
) -> list[Schedule]:
    """Returns the schedules of the trials.

    Raises:
      ValueError: there is none, or there are two kinds; they have different numbers of gradients,
        or more replicas than the Config.
    """
    if (schedule is None) == ("schedule" not in over):
        raise ValueError("give either a schedule, or several as over['schedule']")
    found = [schedule] if schedule is not None else list(over["schedule"])
    counts = {table.gradients for table in found}
    if len(counts) > 1:
        raise ValueError(
            f"over['schedule'] has between {min(counts):,} and {max(counts):,} gradients: give "
            "schedules with equally many, such as those of a Config with steps"
        )
    for table in found:
        shards = getattr(config, "shards", 1)
        if table.replicas > config.replicas or table.shards != shards:
            raise ValueError(
                f"the schedule has replicas={table.replicas} and shards={table.shards}, and the "
                f"Config has replicas={config.replicas} and shards={shards}: give the Config that "
                "it was made with"
            )
    return found


class _Group:
    """The trials with one order of the data."""

    def __init__(
        self,
        task: Task,
        config: Any,
        schedule: Schedule,
        rules: Sequence[Rule],
        starts: Sequence[Any],
    ) -> None:
        local = getattr(config, "local_rule", None)
        turns, indices = turns_of(schedule), np.arange(schedule.gradients, dtype=np.int32)
        self._arithmetics = list[CompiledArithmetic]()
        for rule in rules or [config.rule]:
            recorded = Recorded(schedule, indices, rule, local or rule, task.loss, config.replicas)
            planner = self._arithmetics[0].planner if self._arithmetics else None
            self._arithmetics.append(CompiledArithmetic(task, recorded, turns, planner))
        self._first = self._arithmetics[0]
        self._alike = all(map(self._first.alike, self._arithmetics))
        self._starts = [task.start() if start is None else start for start in starts]
        self._end = int(turns.ends[-1])  # also of gradients that no shard applies
        self._gradients = schedule.gradients

    def require_at_once(self, trials: Sequence[Trial]) -> None:
        """Raises ValueError if the trials cannot be computed at once."""
        if not self._alike:
            raise ValueError(
                "at_once=True: the rules differ in more than numbers that one program can be "
                "given; use at_once=False"
            )
        if not self._fits(trials):
            size = len(trials) * self._first.nbytes / 1e9
            raise ValueError(
                f"at_once=True: {len(trials)} trials take {size:.3g} GB, more than half of what is "
                "free; use at_once=False"
            )

    def is_faster_at_once(self, trials: Sequence[Trial]) -> bool:
        """Measures a few turns of both ways."""
        if len(trials) == 1 or not self._alike or not self._fits(trials):
            return False
        plan, count = self._first.planner.plan(0, min(self._end, _MEASURED))

        def seconds(carry: Any, run: Any) -> float:
            for turns in (0, count):  # the first one compiles
                begin = time.perf_counter()
                carry, losses = run(carry, turns)
                jax.block_until_ready(losses)
            return time.perf_counter() - begin

        first = self._first
        alone = seconds(self._begin(trials[0]), lambda c, n: first.run(c, plan, n))
        constants = self._constants(trials)
        together = seconds(
            self._stacked(trials), lambda c, n: first.run_many(c, plan, n, constants)
        )
        return together < alone * len(trials) / _threads()

    def run(self, trials: Sequence[Trial], every: int, at_once: bool) -> tuple[Any, Any]:
        """Runs all trials; returns the stacked final parameters, and the curves of losses."""
        join = compiled_join(self._first.partition)
        if at_once:
            params, losses = self._at_once(trials, every)
            return jax.vmap(join)(params), losses
        first, *others = trials  # which compiles the program
        found = [self._alone(first, every)]
        with ThreadPoolExecutor(_threads()) as threads:
            found += threads.map(lambda trial: self._alone(trial, every), others)
        params = [join(params) for params, _ in found]
        return jax.tree.map(lambda *a: jnp.stack(a), *params), np.stack([c for _, c in found])

    def _alone(self, trial: Trial, every: int) -> tuple[Any, Any]:
        run = self._arithmetics[trial[0]].run
        carry, losses = self._advanced(self._begin(trial), run, every, ())
        return carry.params, losses

    def _at_once(self, trials: Sequence[Trial], every: int) -> tuple[Any, Any]:
        constants = self._constants(trials)

        def run(carry: Any, plan: Any, count: int) -> Any:
            return self._first.run_many(carry, plan, count, constants)

        carry, losses = self._advanced(self._stacked(trials), run, every, (len(trials),))
        return carry.params, losses

    def _advanced(self, carry: Any, run: Any, every: int, shape: Any) -> tuple[Any, Any]:
        """Runs all turns, and adds up the losses of every so many gradients."""
        planner, begin = copy.copy(self._first.planner), 0  # it caches; threads run beside
        sums = np.zeros((*shape, -(-self._gradients // every)), np.float64)
        while begin < self._end:
            plan, count = planner.plan(begin, self._end)
            carry, losses = run(carry, plan, count)
            numbers = planner.gradients(begin, count)
            there = numbers >= 0
            places: Any = (..., numbers[there] // every)
            np.add.at(sums, places, np.asarray(losses)[..., :count, :][..., there])
            begin += count
        counts = np.bincount(np.arange(self._gradients) // every)
        return carry, (sums / counts).astype(np.float32)

    def _begin(self, trial: Trial) -> Carry:
        rule, start = trial
        return self._arithmetics[rule].begin(self._starts[start])

    def _stacked(self, trials: Sequence[Trial]) -> Any:
        return jax.tree.map(lambda *a: jnp.stack(a), *map(self._begin, trials))

    def _constants(self, trials: Sequence[Trial]) -> Any:
        of_trials = [self._arithmetics[rule].constants for rule, _ in trials]
        return jax.tree.map(lambda *values: jnp.stack(values), *of_trials)

    def _fits(self, trials: Sequence[Trial]) -> bool:
        return len(trials) * self._first.nbytes <= _SHARE * free_bytes()


def _threads() -> int:
    """Returns how many trials to run beside each other, each by itself."""
    return os.cpu_count() or 1 if jax.default_backend() == "cpu" else 1
