"""Services that die with their node, and come back knowing nothing."""

import numpy as np
import pytest

from dbjax.errors import DeadlockError, NodeDied, ServiceError, StateLost
from dbjax.runtime import Cluster, Failure, Machine, VirtualRuntime
from dbjax.runtime.trace import Trace


class Forgetful:
    """A service that knows how often it was called in this life."""

    def __init__(self, node):
        self.node, self.calls = node, 0

    async def work(self, seconds):
        self.calls += 1
        await self.node.sleep(seconds)
        return self.node.incarnation, self.calls

    def later(self, seconds):
        return self.node.sleep(seconds)


def dying(main, *failures):
    runtime = VirtualRuntime(Cluster(latency_s=0.1, failures=failures))
    service = runtime.serve("service", Forgetful)
    done = runtime.spawn("main", main, service)
    return runtime.run(), done.result()


async def outcome(future):
    try:
        return await future
    except NodeDied as error:
        return str(error).split()[0]


def test_a_dead_service_fails_its_calls_and_is_made_anew():
    async def main(node, service):
        served = await service.call(Forgetful.work, 0.3)
        lost = [service.call(Forgetful.work, 1.0), service.call(Forgetful.later, 5.0)]
        told = [(await outcome(future), round(node.now(), 6)) for future in lost]
        refused = (await outcome(service.call(Forgetful.work, 0.0)), round(node.now(), 6))
        await service.up()
        back_s = round(node.now(), 6)
        await service.up()
        return served, told, refused, back_s, await service.call(Forgetful.work, 0.0)

    _, (served, told, refused, back_s, again) = dying(main, Failure("service", 1.0, 2.0))
    assert served == (0, 1)
    assert told == [("service", 1.1), ("service", 1.1)]  # when it died, and the latency
    assert refused == ("service", 1.3)
    assert back_s == 2.1
    assert again == (1, 1)


def test_a_service_that_lives_again_does_not_finish_what_it_was_at():
    async def main(node, service):
        lost = service.call(Forgetful.work, 1.0)
        told = await outcome(lost)
        await service.up()
        return told, await service.call(Forgetful.work, 0.5), round(node.now(), 6)

    _, result = dying(main, Failure("service", 0.5, 0.6))
    assert result == ("service", (1, 1), 1.4)


def test_a_death_that_nobody_asks_about_is_no_error():
    async def main(node, service):
        _ = service.call(Forgetful.work, 9.0)
        await node.sleep(3.0)

    end_s, _ = dying(main, Failure("service", 1.0))
    assert end_s == 3.0


def test_who_waits_for_a_service_that_never_returns_is_named():
    async def main(node, service):
        await node.sleep(2.0)
        await service.up()

    with pytest.raises(DeadlockError, match="main waits for return of service"):
        dying(main, Failure("service", 1.0))


@pytest.mark.parametrize("node", ["main", "services", "service"])
def test_a_failure_of_a_node_that_does_not_exist_is_refused(node):
    async def main(node, service):
        await node.sleep(1.0)

    runtime = VirtualRuntime(Cluster(failures=(Failure(node, 0.5, 0.6),)))
    runtime.serve("service", Forgetful)
    runtime.spawn("main", main, None)
    if node != "services":
        runtime.run()
    else:
        with pytest.raises(ValueError, match=f"Failure of '{node}': no such node"):
            runtime.run()


def test_drawn_failures_of_a_service_come_back_and_end_with_the_run():
    machine = Machine(mean_time_between_failures_s=1.0, mean_time_to_repair_s=0.2)
    trace = Trace()
    runtime = VirtualRuntime(Cluster(machines={"service": machine}), trace=trace)
    service = runtime.serve("service", Forgetful)

    async def main(node):
        done = 0
        while done < 50:
            try:
                await service.call(Forgetful.work, 0.5)
                done += 1
            except NodeDied:
                await service.up()

    runtime.spawn("main", main)
    end_s = runtime.run()
    died = [row for row in trace.rows if row["event"] == "died"]
    assert len(died) > 15
    assert max(row["time_s"] for row in trace.rows) <= end_s


def test_what_a_service_touches_takes_memory_time():
    class Memory:
        def __init__(self, node):
            self.node = node

        def sweep(self, size):
            self.node.count_memory_traffic([np.zeros(size, np.uint8)])

    runtime = VirtualRuntime(Cluster(memory_bandwidth_bytes_per_s=100.0, service_s=1.0))
    memory = runtime.serve("memory", Memory)

    async def main(node):
        await memory.call(Memory.sweep, 50)
        await memory.call(Memory.sweep, 0)

    runtime.spawn("main", main)
    assert runtime.run() == 2.5


class Refusing:
    """A service whose answers are errors."""

    def __init__(self, node, error):
        self.error = error

    def ask(self):
        raise self.error


def asked(error, *failures):
    """A main asks, and the run is over, or it is dead, before the answer is there."""

    async def main(node, service):
        await service.call(Refusing.ask)

    runtime = VirtualRuntime(Cluster(latency_s=0.2, failures=failures))
    service = runtime.serve("service", Refusing, error)
    _ = runtime.spawn("main", main, service)
    runtime.run(until_s=0.3)


@pytest.mark.parametrize("failures", [(), (Failure("main", 0.25, 1.0),)])
def test_an_error_on_its_way_is_not_lost_unless_it_only_says_who_is_not_there(failures):
    asked(NodeDied("not here"), *failures)
    asked(StateLost("not known"), *failures)
    with pytest.raises(ServiceError, match="ValueError: wrong"):
        asked(ValueError("wrong"), *failures)


@pytest.mark.parametrize("back_s", [0.8, 2.0])
def test_a_reply_to_a_life_that_is_over_comes_to_nobody(back_s):
    """Called at 0 s, replied at 1 s; whoever called died at 0.75 s, and calls again when back."""
    trace = Trace(max_spans=9)
    runtime = VirtualRuntime(
        Cluster(latency_s=0.5, failures=(Failure("main", 0.75, back_s),)), trace=trace
    )
    service = runtime.serve("service", Forgetful)

    async def main(node):
        return await service.call(Forgetful.work, 0.0)

    done = runtime.spawn("main", main)
    assert runtime.run() == back_s + 1.0
    assert done.result() == (0, 2)
    calls = [(span.start_s, span.end_s) for span in trace.spans if span.node == "main"]
    assert calls == [(back_s, back_s + 1.0)]
