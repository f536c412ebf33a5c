"""The prediction of benchmark (h), by hand; and a child that takes a step."""

import pytest

from benchmarks import step_time
from benchmarks.model_parallel import prediction_ms
from dbjax.runtime.step_time import Phase, PhasedStep


def test_a_prediction_by_hand():
    whole = PhasedStep(1, (Phase(1e9), Phase(5e8, repeats=2)))  # 2e9 FLOPs in 100 ms: 2e10 a second
    sharding = PhasedStep(2, (Phase(1e9, rounds=3, messages=3, sent_bytes=1e6),))
    exchange = {"latency_s": 1e-3, "bandwidth_bytes_per_s": 1e8}
    assert prediction_ms(whole, sharding, exchange, 100.0) == pytest.approx(50 + 3 + 10)


def test_a_child_takes_steps_on_two_devices(monkeypatch):
    cores = tuple(sorted(step_time.os.sched_getaffinity(0)))[:2]
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    with step_time.children(sharding=("small vision", cores, 2, "tiles")) as running:
        child = running["sharding"]
        assert child.step.machines == 2
        assert child.exchange.keys() == {"latency_s", "bandwidth_bytes_per_s"}
        assert child.case(1)() > 0
