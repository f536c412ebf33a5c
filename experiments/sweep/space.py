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

from dbjax.arguments import nearest, require_at_least_one, require_known, require_seed
from experiments.defaults import OPEN
from experiments.load import load_module

SPACES = Path("configs/spaces")
SAMPLERS = ("grid", "random", "tpe")
PRUNERS = ("none", "median", "halving")


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
    named = {v if isinstance(v, str | int | float | None) else repr(v): v for v in values}
    return Values(CategoricalDistribution(tuple(named)), tuple(named), named)


def uniform(low: float, high: float, *, points: int = 5) -> Values:
    """A number between the two; so many, equally spaced, in a grid."""
    grid = tuple(map(float, np.linspace(low, high, points)))
    return Values(FloatDistribution(low, high), grid)


def log_uniform(low: float, high: float, *, points: int = 5) -> Values:
    """A number between the two, its logarithm uniform."""
    distribution = FloatDistribution(low, high, log=True)
    return Values(distribution, tuple(map(float, np.geomspace(low, high, points))))


def integers(low: int, high: int, *, step: int = 1) -> Values:
    """An integer from `low` to `high`, both included."""
    return Values(IntDistribution(low, high, step=step), tuple(range(low, high + 1, step)))


def log_integers(low: int, high: int, *, points: int = 5) -> Values:
    """An integer from `low` to `high`, its logarithm uniform."""
    distribution = IntDistribution(low, high, log=True)
    return Values(distribution, tuple(sorted({round(x) for x in np.geomspace(low, high, points)})))


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
            if not isinstance(values, Values):
                raise ValueError(f"SPACE: {name!r} is {values!r}; write choice({values!r})")
        for kind, known in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
            if getattr(self, kind) not in known:
                name = getattr(self, kind)
                raise ValueError(f"no {kind} {name!r}{nearest(name, known)}")
        if not 0 < self.prune_from < 1:
            raise ValueError(f"prune_from={self.prune_from!r} must be between 0 and 1")
        require_at_least_one(trials=self.count, seeds=self.seeds, cluster_seeds=self.cluster_seeds)
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

        With every name that a field may choose, such as `rule.name`: each end of each other field.
        """
        chosen = [name for name in self.space if name in OPEN.values()]
        firsts = {name: values.ends[0] for name, values in self.space.items()}
        for names in itertools.product(*(self.space[name].ends for name in chosen)):
            named = firsts | dict(zip(chosen, names, strict=True))
            yield named
            for name, values in self.space.items():
                if name not in chosen:
                    yield from (named | {name: value} for value in values.ends[1:])

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
        require_known("it", given, hints)
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
