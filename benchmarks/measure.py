"""Interleaved measuring, since machines change their speed within minutes."""

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
    """Numbers of several cases, taken in turn; the first case is what others are held against.

    Attributes:
      title: what is measured.
      unit: of the numbers.
      numbers: case -> one number a round.
      bounds: case -> the ratio to the first case that it should reach, as text.
      notes: other facts, such as memory.
    """

    title: str
    unit: str
    numbers: dict[str, list[float]]
    bounds: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def ratios(self, case: str) -> list[float]:
        """To the first case, round by round."""
        first = next(iter(self.numbers.values()))
        return [a / b for a, b in zip(self.numbers[case], first, strict=True)]

    def table(self) -> rich.table.Table:
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
        if self.numbers:
            console.print(self.table())
        else:
            console.print(self.title)
        for name, value in self.notes.items():
            console.print(f"  {name}: {value}", soft_wrap=True)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
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
    """Runs every case once to warm up, then all of them in turn, `rounds` times."""
    numbers: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case()
    for _ in range(rounds):
        for name, case in cases.items():
            numbers[name].append(case())
    return Measured(title, unit, numbers, dict(bounds or {}), dict(notes or {}))


def milliseconds(function: Callable[[], Any]) -> Case:
    """A case: how long one call takes."""

    def case() -> float:
        begin = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - begin)

    return case


def peak_memory_gb() -> float:
    """Of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
