"""Interleaved measurements, because a machine's speed changes within minutes."""

from __future__ import annotations

import dataclasses
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import rich.console
import rich.table

Case = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Measured:
    """The measurements of several cases that took turns; the first case is the baseline.

    Attributes:
      title: the title of the table.
      unit: the unit of the numbers.
      numbers: case -> one number for each round.
      bounds: case -> the ratio to the first case that it should reach, as text, such as "<= 1.1".
      notes: further facts to print, by name, such as peak memory.
    """

    title: str
    unit: str
    numbers: dict[str, list[float]]
    bounds: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def ratios(self, case: str) -> list[float]:
        """The ratio of a case to the first case in each round."""
        first = next(iter(self.numbers.values()))
        return [a / b for a, b in zip(self.numbers[case], first, strict=True)]

    def table(self) -> rich.table.Table:
        """A table of medians and ranges, of the numbers and of their ratios."""
        table = rich.table.Table(title=self.title, title_justify="left")
        for column in ("", self.unit, "lowest .. highest", "ratio", "lowest .. highest", "aim"):
            table.add_column(column, justify="left" if column == "" else "right")
        for case, numbers in self.numbers.items():
            ratios = self.ratios(case)
            table.add_row(
                case,
                f"{statistics.median(numbers):,.4g}",
                f"{min(numbers):,.4g} .. {max(numbers):,.4g}",
                f"{statistics.median(ratios):.3f}",
                f"{min(ratios):.3f} .. {max(ratios):.3f}",
                self.bounds.get(case, ""),
            )
        return table

    def show(self, console: rich.console.Console) -> None:
        """Prints table and notes."""
        if self.numbers:
            console.print(self.table())
        else:
            console.print(self.title)
        for name, value in self.notes.items():
            console.print(f"  {name}: {value}", soft_wrap=True)

    def plain(self) -> dict[str, Any]:
        """All fields and the median ratios, for JSON."""
        medians = {case: statistics.median(self.ratios(case)) for case in self.numbers}
        return dataclasses.asdict(self) | {"median_ratios": medians}


def in_turn(
    title: str,
    unit: str,
    cases: Mapping[str, Case],
    rounds: int,
    bounds: Mapping[str, str] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Measured:
    """Runs every case once to warm up, then all of them in turn, `rounds` times.

    Args:
      title: see `Measured`, as for the other arguments.
      unit: the unit of the numbers.
      cases: functions that measure one number each, by name; the first is the baseline.
      rounds: the number of measurements of each case.
      bounds: case -> the ratio to the first case that it should reach, as text.
      notes: further facts to print, by name.
    """
    numbers: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case()
    for _ in range(rounds):
        for name, case in cases.items():
            numbers[name].append(case())
    return Measured(title, unit, numbers, dict(bounds or {}), dict(notes or {}))


def milliseconds(function: Callable[[], Any]) -> Case:
    """A case: the milliseconds of one call of a function."""

    def case() -> float:
        begin = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - begin)

    return case


def peak_memory_gb() -> float:
    """The peak memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
