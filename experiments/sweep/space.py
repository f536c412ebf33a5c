"""Search spaces: what a sweep chooses from, as described by a file in `configs/spaces`.

Such a file assigns names in capitals:

SPACE = {"rule.gamma": log_uniform(1e-3, 1e-1), "options.n_fetch": choice(1, 5)}
SAMPLER, TRIALS = "random", 40
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import symtable
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from dbjax.arguments import (
    describe,
    fits,
    nearest,
    require_at_least,
    require_seed,
)
from experiments.defaults import OPEN
from experiments.load import load_module

SPACES = Path("configs/spaces")
SAMPLERS = ("grid", "random", "tpe")
PRUNERS = ("none", "median", "halving")
_COMBINATIONS = 64  # all combinations of extreme values are checked up to this number


@final
@dataclasses.dataclass(frozen=True)
class Values:
    """The values that a field may take.

    Attributes:
      distribution: the Optuna distribution to draw from. Where values are not plain (lists, for
        example) it draws their names.
      grid: the values, or names of values, that a grid search takes.
      named: name -> value, for choices.
    """

    distribution: BaseDistribution
    grid: tuple[Any, ...]
    named: Mapping[Any, Any] = dataclasses.field(default_factory=dict)

    def value(self, drawn: Any) -> Any:
        """Returns the field's value for what was drawn from the distribution or grid."""
        return self.named.get(drawn, drawn)

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values to check before a sweep: every choice, or the lowest and highest number."""
        ends = self.grid if self.named else (self.grid[0], self.grid[-1])
        return tuple(map(self.value, ends))

    @property
    def logarithmic(self) -> bool:
        """Whether the logarithm is uniform."""
        return bool(getattr(self.distribution, "log", False))


def choice(*values: Any) -> Values:
    """Chooses one of the given values.

    Raises:
      ValueError: one of them is NaN.
    """
    for value in values:
        if isinstance(value, float) and math.isnan(value):
            raise ValueError("choice: nan is not a valid value; leave it out")
    named = {v if isinstance(v, str | int | float | None) else repr(v): v for v in values}
    return Values(CategoricalDistribution(tuple(named)), tuple(named), named)


def uniform(low: float, high: float, *, points: int = 5) -> Values:
    """Chooses a float from `low` to `high`, uniformly.

    Args:
      low: the lowest value.
      high: the highest value.
      points: the number of equally spaced values that a grid search takes.

    Raises:
      ValueError: an end is not finite, `low` is above `high`, or `points` is below 1.
    """
    _require_range("uniform", low, high, points)
    grid = tuple(map(float, np.linspace(low, high, points)))
    return Values(FloatDistribution(low, high), grid)


def log_uniform(low: float, high: float, *, points: int = 5) -> Values:
    """Chooses a float from `low` to `high`, with a uniform logarithm.

    Args:
      low: the lowest value, above 0.
      high: the highest value.
      points: the number of values, equally spaced in their logarithm, that a grid search takes.

    Raises:
      ValueError: an end is not finite, `low` is above `high`, or `points` is below 1.
    """
    _require_range("log_uniform", low, high, points)
    distribution = FloatDistribution(low, high, log=True)
    return Values(distribution, tuple(map(float, np.geomspace(low, high, points))))


def integers(low: int, high: int, *, step: int = 1) -> Values:
    """Chooses one of `low`, `low + step`, ..., up to and including `high` where a step ends there.

    Raises:
      ValueError: an end is not an integer, `low` is above `high`, or `step` is below 1.
    """
    _require_range("integers", low, high)
    require_at_least("", 1, **{"integers: step": step})
    grid = tuple(range(low, high + 1, step))
    return Values(IntDistribution(low, grid[-1], step=step), grid)


def log_integers(low: int, high: int, *, points: int = 5) -> Values:
    """Chooses an integer from `low` to `high`, with a uniform logarithm.

    Args:
      low: the lowest value, at least 1.
      high: the highest value.
      points: the number of values, equally spaced in their logarithm and rounded, that a grid
        search takes; duplicates are removed.

    Raises:
      ValueError: an end is not an integer, `low` is above `high`, or `points` is below 1.
    """
    _require_range("log_integers", low, high, points)
    distribution = IntDistribution(low, high, log=True)
    return Values(distribution, tuple(sorted({round(x) for x in np.geomspace(low, high, points)})))


def _require_range(of: str, low: float, high: float, points: int = 1) -> None:
    """Raises ValueError unless low <= high, both are finite, and `points` is at least 1."""
    kind = int if "integers" in of else float
    for name, value in (("low", low), ("high", high)):
        if not fits(value, kind) or not math.isfinite(value):
            raise ValueError(f"{of}: {name}={value!r} must be a finite {describe(kind)}")
    if low > high:
        raise ValueError(f"{of}: low={low!r} is above high={high!r}: give the smaller one first")
    if not fits(points, int):
        raise ValueError(f"{of}: points={points!r} must be int")
    require_at_least("", 1, **{f"{of}: points": points})


@final
@dataclasses.dataclass(frozen=True)
class Space:
    """A search space, and how it is searched. A file assigns each attribute in capitals.

    Attributes:
      space: name of a config field -> its values.
      sampler: "grid", "random" or "tpe".
      pruner: "none", "median" or "halving". "median" stops a run whose value is worse than the
        median of earlier trials at the same time on the run's clock. "halving" stops a run that
        is not among the best third of them, first at `prune_from` and then whenever its age has
        tripled.
      prune_from: the share of a run's time before which it is never pruned, so that warm starts
        do not count against it.
      trials: the number of trials, or None for all points of a grid, and 20 for other samplers.
      seeds: the number of runs per trial with different data orders and initial parameters. The
        value of a trial is the mean over its runs.
      cluster_seeds: the number of runs with different delays, for each of `seeds`.
      seed: the seed of the sampler.
      metric: the metric to optimise; if empty, hold-out accuracy, or hold-out loss for a
        regression.

    Raises:
      ValueError: an attribute is invalid; the message names it.
    """

    space: Mapping[str, Values]
    sampler: str = "random"
    pruner: str = "none"
    prune_from: float = 0.1
    trials: int | None = None
    seeds: int = 1
    cluster_seeds: int = 1
    seed: int = 0
    metric: str = ""

    def __post_init__(self) -> None:
        require_seed("seed", self.seed)
        if not isinstance(self.space, Mapping) or not self.space:
            raise ValueError("SPACE must be a dict of config fields and their values")
        for name, values in self.space.items():
            if not isinstance(name, str):
                raise ValueError(f"SPACE: {name!r} is not a field name: write it as a string")
            if not isinstance(values, Values):
                raise ValueError(f"SPACE: {name!r} is {values!r}; write choice({values!r})")
        for kind, known in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
            if getattr(self, kind) not in known:
                name = getattr(self, kind)
                raise ValueError(f"unknown {kind} {name!r}{nearest(name, known)}")
        if not 0 < self.prune_from < 1:
            raise ValueError(f"prune_from={self.prune_from!r} must be between 0 and 1")
        require_at_least(
            "", 1, trials=self.count, seeds=self.seeds, cluster_seeds=self.cluster_seeds
        )
        if self.sampler == "grid" and self.count > self.points:
            raise ValueError(f"trials={self.trials}, but the grid has {self.points} points")

    @property
    def count(self) -> int:
        """The number of trials."""
        if self.trials is None:
            return self.points if self.sampler == "grid" else 20
        return self.trials

    @property
    def points(self) -> int:
        """The number of points of the grid."""
        return math.prod(len(values.grid) for values in self.space.values())

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The Optuna distribution of each field."""
        return {name: values.distribution for name, values in self.space.items()}

    def point(self, number: int) -> dict[str, Any]:
        """Returns the grid point of trial `number`; `seed` determines the order of the points."""
        index = int(np.random.default_rng(self.seed).permutation(self.points)[number])
        found = {}
        for name, values in reversed(list(self.space.items())):
            index, at = divmod(index, len(values.grid))
            found[name] = values.grid[at]
        return dict(reversed(list(found.items())))

    def values(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values of the fields in a trial, given what was drawn for each."""
        return {name: values.value(drawn[name]) for name, values in self.space.items()}

    def ends(self) -> Iterator[dict[str, Any]]:
        """Yields the values of trials that show whether the fields can be set at all.

        If there are at most 64 combinations of extreme values (`Values.ends`), all are yielded.
        Otherwise, for every combination of the names that fields may choose (such as `rule.name`):
        all other fields at their first extreme, or all at their last, except for one field, which
        takes each of its extremes.
        """
        ends = {name: values.ends for name, values in self.space.items()}
        if math.prod(map(len, ends.values())) <= _COMBINATIONS:
            yield from (
                dict(zip(ends, one, strict=True)) for one in itertools.product(*ends.values())
            )
            return
        chosen = [name for name in self.space if name in OPEN.values()]
        for names, end in itertools.product(
            itertools.product(*(ends[name] for name in chosen)), (0, -1)
        ):
            others = {name: values[end] for name, values in ends.items()}
            named = others | dict(zip(chosen, names, strict=True))
            yield named
            for name, values in ends.items():
                if name not in chosen:
                    yield from (named | {name: value} for value in values if value != named[name])

    def described(self) -> dict[str, Any]:
        """Returns everything that determines the trials, as values for JSON."""
        grid = self.sampler == "grid"
        space = {k: str(v.grid if grid else v.distribution) for k, v in self.space.items()}
        return {**vars(self), "space": space}


def load_space(name: str, **chosen: Any) -> Space:
    """Loads a space from a Python file.

    Args:
      name: the path of the file.
      **chosen: attributes of `Space` that override those of the file.

    Raises:
      ValueError: the file does not exist, or something in it is wrong.
    """
    try:
        module = vars(load_module(name, "space", SPACES))
        hints = {k.upper(): hint for k, hint in typing.get_type_hints(Space).items()}
        for own in _assigned(name):
            if own not in hints and own.upper() in hints:
                raise ValueError(f"{own}={module[own]!r} has no effect: write {own.upper()}")
            if own not in hints and own.isupper():
                raise ValueError(
                    f"unknown name {own!r}{nearest(own, hints)}; begin the name of a helper with _"
                )
        given = {k: module[k] for k in hints if k in module}
        for own, value in given.items():
            if not fits(value, hints[own]):
                raise ValueError(f"{own}={value!r} must be {describe(hints[own])}")
        if "SPACE" not in given:
            raise ValueError("SPACE is missing: a dict of config fields and their values")
        made = Space(**{k.lower(): v for k, v in given.items()} | chosen)
        if made.pruner == "none" and "PRUNE_FROM" in given and "pruner" not in chosen:
            raise ValueError(f"PRUNE_FROM={made.prune_from} has no effect: set PRUNER as well")
        return made
    except ValueError as error:
        raise ValueError(f"space {name!r}: {error}") from error


def _assigned(file: str) -> Iterator[str]:
    """Yields the public names that a file assigns, except for those that it imports."""
    table = symtable.symtable(Path(file).read_text(), file, "exec")
    for symbol in table.get_symbols():
        name = symbol.get_name()
        if symbol.is_assigned() and not symbol.is_imported() and not name.startswith("_"):
            yield name
