"""Cases as hypothesis draws them; those that fail are shrunk for a while."""

from __future__ import annotations

import os
from collections.abc import Callable

import jax
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from tests.simulation.book import Violation
from tests.simulation.case import CHOICES, FAVOURED, Case

SHRINKING = 40  # runs that a failing case may take to be made smaller

cases = st.builds(
    Case,
    seed=st.integers(0, 2**32 - 1),
    **{name: st.sampled_from(FAVOURED.get(name, some)) for name, some in CHOICES.items()},
)


def schedules(count: int) -> settings:
    """That many cases: always the same, unless SIMULATION_RANDOM is set."""
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize="SIMULATION_RANDOM" not in os.environ,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
    )


class Tried:
    """Runs cases; a failing one names what replays it, and is shrunk for no longer than a while.

    Attributes:
      count: how many ran, until the first that failed.
    """

    def __init__(self, run: Callable[[Case], object]) -> None:
        self._run, self._failing = run, {}
        self.count, self._left = 0, SHRINKING

    def __call__(self, case: Case) -> None:
        if case in self._failing:
            raise self._failing[case]
        if self._failing and not self._left:
            return  # enough of shrinking
        self._left -= bool(self._failing)
        self.count += not self._failing
        if self.count % 500 == 0:
            jax.clear_caches()  # every case compiles programs of its own
        try:
            self._run(case)
        except Violation as violation:
            text = f"{violation}\nseed {case.seed}; to replay it:\n    {case.command()}"
            self._failing[case] = Violation(text)
            raise self._failing[case] from violation
