"""Real methods and the real store, through all that can go wrong with machines, networks, disks.

After FoundationDB (Zhou et al. 2021, section 4, "Simulation Testing"). A failing case ends with
the command that replays it. The long run, with its number of schedules:

    SIMULATION_SCHEDULES=10000 python -m pytest tests/simulation -m slow -s
"""

import os
import signal
import time

import pytest
from hypothesis import given

from tests.simulation.book import Book, Violation
from tests.simulation.case import Case, case_of
from tests.simulation.replay import parsed
from tests.simulation.simulate import check_deterministic, check_replayable, simulate
from tests.simulation.storage import Disk
from tests.simulation.strategies import Tried, cases, schedules

# Where a write is cut short, threads of Orbax still call back to a loop that has ended.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

IN_CI = 100
LONG = int(os.environ.get("SIMULATION_SCHEDULES", "2000"))


def run_all(count):
    tried = Tried(simulate)

    @schedules(count)
    @given(case=cases)
    def run(case):
        tried(case)

    run()
    return tried.count


def test_what_has_to_hold_holds_in_every_schedule():
    assert run_all(IN_CI) >= IN_CI


@pytest.mark.parametrize("seed", [0, 2, 5, 22, 33, 54, 57, 62])  # most notice a planted fault
def test_it_holds_on_a_disk_that_fails(seed):
    simulate(case_of(seed, storage=4))


@pytest.mark.parametrize("kind", [Book, Disk])  # in a run without a disk that fails, or with one
def test_a_signal_that_ends_a_run_is_no_violation(kind, monkeypatch):
    def note(*given):
        if not came:
            came.append(signal.raise_signal(signal.SIGINT))
        return right(*given)

    came, right = [], kind.note
    monkeypatch.setattr(kind, "note", note)
    with pytest.raises(KeyboardInterrupt, match="SIGINT"):
        simulate(case_of(3, storage=1))  # which writes a checkpoint before its end


@pytest.mark.slow
def test_it_holds_in_very_many(capsys):
    begin = time.perf_counter()
    count = run_all(LONG)
    with capsys.disabled():
        print(f"\n{count} schedules in {time.perf_counter() - begin:.0f} s: all holds")
    assert count >= LONG


FOUND = [  # steps of synchronous SGD whose end a shard has lost, when some replicas were gone
    Case(3011, "sgd", 2, 3, steps=4, deaths=3, outages=4, links=2, duplicates=True, jitter=True),
    Case(3567, "sgd", 2, 3, steps=4, deaths=5, links=2, restless=True, jitter=True),
    # answers that showed what only the head had
    Case(1801, "sgd", 3, 1, 1, deaths=3, outages=2, duplicates=True),
    Case(3884, "sgd", 4, 2, 1, 12, deaths=8, outages=4, duplicates=True, restless=True,
         jitter=True),
]  # fmt: skip


@pytest.mark.parametrize("case", FOUND, ids=lambda case: str(case.seed))
def test_what_was_found_once_holds(case):
    simulate(case)


@pytest.mark.parametrize("seed", range(5))
def test_a_push_that_reaches_its_shard_twice_is_answered_and_applied_once(seed):
    ran = simulate(Case(seed, replicas=3, shards=2, backups=seed % 2, repeats=True))
    sent = ran.book.repeated
    assert ran.result.summary["repeated_pushes"] == sent > 0


@pytest.mark.parametrize("seed", range(6))
def test_the_same_case_twice_is_the_same_run(seed):
    check_deterministic(case_of(seed))


@pytest.mark.parametrize("seed", [*range(6), 96, 143])  # the last two were wrong once
def test_a_run_is_replayed_from_its_log_whoever_dies(seed):
    check_replayable(case_of(seed))


@pytest.mark.parametrize("case", [case_of(7), case_of(7, deaths=5), Case(3, "sgd", steps=4)])
def test_the_command_of_a_case_gives_the_same_case(case):
    words = case.command().split()
    assert words[:3] == ["python", "-m", "tests.simulation.replay"]
    assert parsed(words[3:]) == case


def test_a_failing_case_says_how_to_replay_it():
    def simulated(case):
        if case.deaths > 1:
            raise Violation("deaths")

    tried = Tried(simulated)

    @schedules(50)
    @given(case=cases)
    def run(case):
        tried(case)

    with pytest.raises(Violation, match=r"(?s)deaths.*seed \d+; .*\.replay --seed=\d+"):
        run()
