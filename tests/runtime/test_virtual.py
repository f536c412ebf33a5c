"""The virtual cluster's clock, against arithmetic done by hand."""

import math

import numpy as np
import pytest

from dbjax.runtime import Cluster, Failure, Machine, VirtualRuntime, all_of
from dbjax.runtime.trace import Trace


class Sink:
    def __init__(self, node):
        self.node, self.arrivals = node, []

    def take(self, data):
        self.arrivals.append(round(self.node.now(), 6))

    def give(self, size):
        return np.zeros(size, np.uint8)


def senders(cluster, count, size, *, calls=1):
    """Each of `count` nodes sends `calls` messages at time 0; returns arrivals and ends."""
    runtime = VirtualRuntime(cluster)
    sink = runtime.serve("sink", Sink)

    async def main(node):
        data = np.zeros(size, np.uint8)
        await all_of([sink.call(Sink.take, data) for _ in range(calls)], list)
        return round(node.now(), 6)

    ends = [runtime.spawn(f"sender/{i}", main) for i in range(count)]
    runtime.run()
    return sink.service.arrivals, [end.result() for end in ends]


CARD = Machine(bandwidth_bytes_per_s=100.0)


def test_transfers_into_one_machine_queue_at_its_card():
    arrivals, ends = senders(Cluster(machine=CARD), 20, 50)
    assert arrivals == [round(0.5 * (i + 1), 6) for i in range(20)]
    assert ends == arrivals  # acknowledgements weigh nothing


def test_transfers_out_of_one_machine_queue_at_its_card():
    arrivals, _ = senders(Cluster(machine=CARD), 1, 50, calls=3)
    assert arrivals == [0.5, 1.0, 1.5]


def test_the_slower_card_decides():
    slow = Machine(bandwidth_bytes_per_s=10.0)
    for machines in ({"sink": slow}, {"sender/*": slow}):
        arrivals, _ = senders(Cluster(machine=CARD, machines=machines), 1, 50)
        assert arrivals == [5.0]


def test_an_idle_receiver_is_not_blocked_by_what_is_queued_at_its_sender():
    runtime = VirtualRuntime(Cluster(machine=CARD))
    near, far = runtime.serve("near", Sink), runtime.serve("far", Sink)

    async def busy(node):
        calls = [
            far.call(Sink.take, np.zeros(1000, np.uint8)),
            near.call(Sink.take, np.zeros(100, np.uint8)),
        ]  # leaves only after 10 s
        await all_of(calls, list)

    async def other(node):
        await node.sleep(1.0)
        await near.call(Sink.take, np.zeros(100, np.uint8))

    runtime.spawn("busy", busy)
    runtime.spawn("other", other)
    runtime.run()
    assert near.service.arrivals == [2.0, 11.0]


def test_latency_counts_both_ways_and_service_time_once():
    cluster = Cluster(latency_s=0.1, service_s=0.01, memory_bandwidth_bytes_per_s=1000.0)
    assert senders(cluster, 1, 50) == ([0.1], [0.26])  # 0.1 + 0.01 + 50 / 1000 + 0.1


def test_size_scale_models_a_larger_network():
    assert senders(Cluster(machine=CARD, size_scale=10.0), 1, 50)[0] == [5.0]


def test_replies_weigh_too():
    runtime = VirtualRuntime(Cluster(machine=CARD))
    sink = runtime.serve("sink", Sink)

    async def main(node):
        await sink.call(Sink.give, 50)
        return node.now()

    ended = runtime.spawn("main", main)
    runtime.run()
    assert ended.result() == 0.5


def test_one_machine_has_no_network_with_itself():
    runtime = VirtualRuntime(Cluster(machine=CARD, latency_s=1.0))
    sink = runtime.serve("here", Sink)

    async def main(node):
        await sink.call(Sink.take, np.zeros(1000, np.uint8))
        return node.now()

    ended = runtime.spawn("here", main)
    runtime.run()
    assert ended.result() == 0.0


def durations(machine, count=1, compute_s=1.0, seed=0):
    runtime = VirtualRuntime(Cluster(compute_s=compute_s, machine=machine, seed=seed))

    async def main(node):
        times = [node.now()]
        for _ in range(count):
            await node.compute(int)
            times.append(node.now())
        return np.diff(times)

    ended = runtime.spawn("main", main)
    runtime.run()
    return ended.result()


def test_compute_time_is_cost_over_speed():
    assert durations(Machine(speed=4.0))[0] == 0.25
    assert durations(Machine(), compute_s=lambda fn, args: 7.0)[0] == 7.0


@pytest.mark.parametrize(
    ("machine", "deviation"),
    [
        (Machine(law="lognormal", sigma=0.5), math.sqrt(math.exp(0.25) - 1)),
        (Machine(law="exponential"), 1.0),
    ],
)
def test_drawn_factors_have_mean_one(machine, deviation):
    drawn = durations(machine, 20_000)
    error = 5 * deviation / math.sqrt(20_000)  # five standard errors
    assert drawn.mean() == pytest.approx(1.0, abs=error)
    assert drawn.std() == pytest.approx(deviation, rel=0.15)
    assert not np.array_equal(drawn, durations(machine, 20_000, seed=1))


def test_stragglers_are_as_many_and_as_slow_as_said():
    drawn = durations(Machine(straggle_probability=0.1, straggle_factor=8.0), 10_000)
    assert set(np.round(drawn, 6)) == {1.0, 8.0}
    assert np.mean(drawn > 2) == pytest.approx(0.1, abs=5 * math.sqrt(0.09 / 10_000))


async def worker(node, log):
    for step in range(5):
        await node.compute(int)
        log.append((node.name, node.incarnation, step, round(node.now(), 6)))


def test_a_replica_that_dies_stops_and_the_others_go_on():
    log = []
    runtime = VirtualRuntime(Cluster(failures=(Failure("w/0", 2.5),)))
    for i in range(2):
        runtime.spawn(f"w/{i}", worker, log)
    assert runtime.run() == 5.0
    assert [t for name, _, _, t in log if name == "w/0"] == [1.0, 2.0]
    assert [t for name, _, _, t in log if name == "w/1"] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_replica_that_returns_begins_anew_and_earlier_wakes_are_not_its():
    log, trace = [], Trace()
    runtime = VirtualRuntime(Cluster(failures=(Failure("w/0", 2.5, back_s=2.75),)), trace=trace)
    runtime.spawn("w/0", worker, log)
    assert runtime.run() == 7.75  # the computation begun at 2.0 ends at 3.0, in vain
    assert [(life, step, t) for _, life, step, t in log] == [
        (0, 0, 1.0), (0, 1, 2.0),
        (1, 0, 3.75), (1, 1, 4.75), (1, 2, 5.75), (1, 3, 6.75), (1, 4, 7.75),
    ]  # fmt: skip
    assert [(r["event"], r["time_s"]) for r in trace.rows] == [("died", 2.5), ("returned", 2.75)]


def test_drawn_failures_keep_their_means():
    machine = Machine(mean_time_between_failures_s=9.0, mean_time_to_repair_s=1.0)
    trace = Trace()
    runtime = VirtualRuntime(Cluster(machine=machine), trace=trace)

    async def endless(node):
        while True:
            await node.compute(int)

    runtime.spawn("w", endless)
    runtime.run(until_s=20_000.0)
    deaths = sum(row["event"] == "died" for row in trace.rows)
    assert deaths == pytest.approx(2000, abs=5 * math.sqrt(2000))


def test_observers_cost_nothing():
    def run(observed):
        trace = Trace(max_spans=1000)
        runtime = VirtualRuntime(Cluster(machine=CARD, latency_s=0.1, service_s=0.01), trace=trace)
        sink = runtime.serve("sink", Sink)

        async def main(node):
            for _ in range(3):
                await sink.call(Sink.take, np.zeros(50, np.uint8))

        async def observer(node):
            while True:
                await sink.call(Sink.give, 1000)
                await node.sleep(0.03)

        runtime.spawn("main", main)
        if observed:
            runtime.observe("observer", observer)
        return runtime.run(), trace.spans

    assert run(True) == run(False)


def test_spans_tell_what_happened():
    trace = Trace(max_spans=10)
    runtime = VirtualRuntime(Cluster(latency_s=1.0, service_s=0.5, compute_s=2.0), trace=trace)
    sink = runtime.serve("sink", Sink)

    async def main(node):
        await node.compute(int)
        await sink.call(Sink.take, 0)

    runtime.spawn("main", main)
    runtime.run()
    told = "; ".join(f"{s.node} {s.kind} {s.start_s:g}-{s.end_s:g}" for s in trace.spans)
    assert told == "main compute 0-2; sink take 3-3.5; main take 2-4.5"


def test_spans_that_were_not_asked_for_do_not_count_as_dropped():
    def dropped(max_spans):
        trace = Trace(max_spans=max_spans)
        runtime = VirtualRuntime(trace=trace)

        async def main(node):
            await node.compute(int)
            await node.compute(int)

        runtime.spawn("main", main)
        runtime.run()
        return trace.dropped_spans

    assert (dropped(1), dropped(0)) == (1, 0)


@pytest.mark.parametrize("law", ["constant", "lognormal", "exponential"])
def test_durations_drawn_many_at_once_are_those_drawn_one_by_one(law):
    def end_s(compute_s):
        machine = Machine(law=law, sigma=0.5 if law == "lognormal" else 0.0)
        runtime = VirtualRuntime(Cluster(compute_s=compute_s, machine=machine), seed=3)

        async def main(node):
            for _ in range(600):
                await node.compute(int)

        runtime.spawn("main", main)
        return runtime.run()

    assert end_s(0.1) == end_s(lambda fn, args: 0.1)  # a function may draw in between


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Machine(speed=0.0), "Machine.speed"),
        (lambda: Machine(law="gauss"), "Machine.law"),
        (lambda: Machine(sigma=0.1), "law='lognormal'"),
        (lambda: Machine(straggle_probability=1.5), "straggle_probability"),
        (lambda: Cluster(latency_s=-1.0), "Cluster.latency_s"),
        (lambda: Cluster(compute_s=math.nan), "Cluster.compute_s"),
        (lambda: Failure("x", 2.0, back_s=1.0), "back_s"),
    ],
)
def test_bad_clusters_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()
