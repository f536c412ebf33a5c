"""What a sweep chooses from: a file of `configs/spaces`.

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
_COMBINATIONS = 64  # of ends, that are all tried


@final
@dataclasses.dataclass(frozen=True)
class Values:
    """What a field may be.

    Attributes:
      distribution: what is drawn from; of names, where values are not plain.
      grid: what a grid takes of it.
      named: the values that have a name.
    """

    distribution: BaseDistribution
    grid: tuple[Any, ...]
    named: Mapping[Any, Any] = dataclasses.field(default_factory=dict)

    def value(self, drawn: Any) -> Any:
        return self.named.get(drawn, drawn)

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that say whether the field can be set at all."""
        ends = self.grid if self.named else (self.grid[0], self.grid[-1])
        return tuple(map(self.value, ends))

    @property
    def logarithmic(self) -> bool:
        return bool(getattr(self.distribution, "log", False))


def choice(*values: Any) -> Values:
    """One of these."""
    for value in values:
        if isinstance(value, float) and math.isnan(value):
            raise ValueError("choice: nan is no value that a field may have; leave it out")
    named = {v if isinstance(v, str | int | float | None) else repr(v): v for v in values}
    return Values(CategoricalDistribution(tuple(named)), tuple(named), named)


def uniform(low: float, high: float, *, points: int = 5) -> Values:
    """A number between the two; so many, equally spaced, in a grid."""
    _require_range("uniform", low, high, points)
    grid = tuple(map(float, np.linspace(low, high, points)))
    return Values(FloatDistribution(low, high), grid)


def log_uniform(low: float, high: float, *, points: int = 5) -> Values:
    """A number between the two, its logarithm uniform."""
    _require_range("log_uniform", low, high, points)
    distribution = FloatDistribution(low, high, log=True)
    return Values(distribution, tuple(map(float, np.geomspace(low, high, points))))


def integers(low: int, high: int, *, step: int = 1) -> Values:
    """An integer from `low` to `high`, in steps; `high` is included if a step ends there."""
    _require_range("integers", low, high)
    require_at_least("", 1, **{"integers: step": step})
    grid = tuple(range(low, high + 1, step))
    return Values(IntDistribution(low, grid[-1], step=step), grid)


def log_integers(low: int, high: int, *, points: int = 5) -> Values:
    """An integer from `low` to `high`, its logarithm uniform."""
    _require_range("log_integers", low, high, points)
    distribution = IntDistribution(low, high, log=True)
    return Values(distribution, tuple(sorted({round(x) for x in np.geomspace(low, high, points)})))


def _require_range(of: str, low: float, high: float, points: int = 1) -> None:
    """Raises ValueError unless both are finite, the smaller first, and a grid has a point."""
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
    """What is chosen from, and how. In a file each has its name in capitals.

    Attributes:
      space: field of the config -> its values.
      sampler: "grid", "random" or "tpe".
      pruner: "median" ends a run that is below the median of earlier trials at the same time
        on the run's clock, "halving" one that is not among their best third, first at
        `prune_from` and then each time it is three times as old; or "none".
      prune_from: share of a run's time before which it is not pruned, whatever warms up in it.
      trials: how many; None: all points of a grid, else 20.
      seeds: runs a trial with other data orders and initial parameters; the mean counts.
      cluster_seeds: and with other delays, each of them for each of `seeds`.
      seed: of the sampler.
      metric: what is optimised; empty: hold-out accuracy, or the hold-out loss of a regression.
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
            raise ValueError("SPACE must be a dict, of fields and their values")
        for name, values in self.space.items():
            if not isinstance(name, str):
                raise ValueError(f"SPACE: {name!r} is no name of a field: write it as a string")
            if not isinstance(values, Values):
                raise ValueError(f"SPACE: {name!r} is {values!r}; write choice({values!r})")
        for kind, known in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
            if getattr(self, kind) not in known:
                name = getattr(self, kind)
                raise ValueError(f"no {kind} {name!r}{nearest(name, known)}")
        if not 0 < self.prune_from < 1:
            raise ValueError(f"prune_from={self.prune_from!r} must be between 0 and 1")
        require_at_least(
            "", 1, trials=self.count, seeds=self.seeds, cluster_seeds=self.cluster_seeds
        )
        if self.sampler == "grid" and self.count > self.points:
            raise ValueError(f"trials={self.trials}, but the grid has {self.points} points")

    @property
    def count(self) -> int:
        """Of the trials."""
        if self.trials is None:
            return self.points if self.sampler == "grid" else 20
        return self.trials

    @property
    def points(self) -> int:
        """Of the grid."""
        return math.prod(len(values.grid) for values in self.space.values())

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {name: values.distribution for name, values in self.space.items()}

    def point(self, number: int) -> dict[str, Any]:
        """Of the grid, whose points are taken in an order that `seed` draws."""
        index = int(np.random.default_rng(self.seed).permutation(self.points)[number])
        found = {}
        for name, values in reversed(list(self.space.items())):
            index, at = divmod(index, len(values.grid))
            found[name] = values.grid[at]
        return dict(reversed(list(found.items())))

    def values(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """What the fields are in a trial."""
        return {name: values.value(drawn[name]) for name, values in self.space.items()}

    def ends(self) -> Iterator[dict[str, Any]]:
        """Trials that tell whether the fields can be set at all.

        Every combination of ends, where there are few. Else, with every name that a field may
        choose, such as `rule.name`: all fields at their first end, or all at their last, but for
        one, which is at each of its ends.
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
        """All that decides what the trials are, for JSON."""
        grid = self.sampler == "grid"
        space = {k: str(v.grid if grid else v.distribution) for k, v in self.space.items()}
        return {**vars(self), "space": space}


def load_space(name: str, **chosen: Any) -> Space:
    """The space of a file; `chosen` stands above what it says.

    Raises:
      ValueError: no such file, or something in it is wrong.
    """
    try:
        module = vars(load_module(name, "space", SPACES))
        hints = {k.upper(): hint for k, hint in typing.get_type_hints(Space).items()}
        for own in _assigned(name):
            if own not in hints and own.upper() in hints:
                raise ValueError(f"{own}={module[own]!r} has no effect: write {own.upper()}")
            if own not in hints and own.isupper():
                raise ValueError(
                    f"it has no {own!r}{nearest(own, hints)}; what only helps begins with _"
                )
        given = {k: module[k] for k in hints if k in module}
        for own, value in given.items():
            if not fits(value, hints[own]):
                raise ValueError(f"{own}={value!r} must be {describe(hints[own])}")
        if "SPACE" not in given:
            raise ValueError("it has no SPACE, a dict of fields and their values")
        made = Space(**{k.lower(): v for k, v in given.items()} | chosen)
        if made.pruner == "none" and "PRUNE_FROM" in given and "pruner" not in chosen:
            raise ValueError(f"PRUNE_FROM={made.prune_from} has no effect: say which PRUNER")
        return made
    except ValueError as error:
        raise ValueError(f"space {name!r}: {error}") from error


def _assigned(file: str) -> Iterator[str]:
    """Public names that a file gives a value to, apart from those that it imports."""
    table = symtable.symtable(Path(file).read_text(), file, "exec")
    for symbol in table.get_symbols():
        name = symbol.get_name()
        if symbol.is_assigned() and not symbol.is_imported() and not name.startswith("_"):
            yield name
