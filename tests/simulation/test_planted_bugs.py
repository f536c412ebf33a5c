"""The simulation finds bugs that are planted in the store."""

import pytest

from tests.simulation.bugs import BUGS, found

# Where a write is cut short, threads of Orbax still call back to a loop that has ended.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

MOST = {  # schedules; it took 5, 3 and 2, then 90 and 170
    "forgets_sequences": 40,
    "applies_what_is_repeated": 20,
    "changes_a_snapshot": 20,
}
RARE = {"replies_before_the_backup_has_followed": 400, "forgets_portions": 500}


@pytest.mark.parametrize("name", MOST)
def test_a_planted_bug_is_found(name):
    assert found(name, 0, MOST[name]) is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", RARE)
def test_a_planted_bug_that_needs_several_failures_is_found(name):
    assert found(name, 0, RARE[name]) is not None


def test_every_bug_says_what_it_is():
    assert all(made.__doc__ for _, _, made in BUGS.values())
