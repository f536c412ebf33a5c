"""Compiled runs leave the same bytes as the engine.

The long comparison:

    SAME_BYTES_CASES=300 python -m pytest tests/schedules/test_same_bytes.py -m slow
"""

import math
import os

import jax
import pytest

import dbjax
from tests.schedules.drawn import case_of

pytestmark = pytest.mark.usefixtures("worth_compiling")
LONG = int(os.environ.get("SAME_BYTES_CASES", "300"))


def plain(row):
    """The row without arrays of jax and NaN, which is unequal to itself."""
    values = {k: float(v) if isinstance(v, jax.Array) else v for k, v in row.items()}
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def require_same(case):
    found = {}
    for executor in ("engine", "auto"):
        trace = dbjax.Trace(max_spans=100_000)
        found[executor] = dbjax.run(
            case.task, case.config, executor=executor, trace=trace, **case.kwargs
        )
    engine, compiled = found["engine"], found["auto"]
    own = ("wall_s", "executor")
    summaries = [
        {k: v for k, v in plain(r.summary).items() if k not in own} for r in found.values()
    ]
    assert summaries[0] == summaries[1]
    assert [*map(plain, engine.trace.rows)] == [*map(plain, compiled.trace.rows)]
    assert engine.trace.spans == compiled.trace.spans
    assert engine.trace.dropped_spans == compiled.trace.dropped_spans
    assert engine.staleness_histogram == compiled.staleness_histogram
    executor = compiled.summary["executor"]
    if executor["name"] == "engine":
        assert "goes back to a checkpoint" in executor["why"]
    return executor["name"] == "compiled"


@pytest.mark.parametrize("number", range(20))
def test_compiled_runs_leave_the_same(number, in_parts):
    if number % 2:
        in_parts()
    require_same(case_of(number))


@pytest.mark.slow
def test_very_many_compiled_runs_leave_the_same(in_parts):
    compared = 0
    in_parts()
    for number in range(20, 20 + 2 * LONG):
        compared += require_same(case_of(number))
        if number % 20 == 0:
            jax.clear_caches()  # every case compiles programs of its own
        if compared == LONG:
            return
    pytest.fail(f"only {compared} cases could be compiled")
