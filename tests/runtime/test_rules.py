"""The rules of the execution model (dbjax/runtime/interface.py), one test each."""

import math
import threading
import time

import numpy as np
import pytest

from dbjax.errors import DeadlockError, ServiceError
from dbjax.runtime import (
    Cluster,
    Future,
    Machine,
    ThreadsRuntime,
    VirtualRuntime,
    all_of,
    ready,
)  # fmt: skip
from dbjax.runtime.interface import first_of
from tests.runtime.lost_error import require_end_by_lost_error

both = pytest.mark.parametrize("make", [VirtualRuntime, ThreadsRuntime])


class Log:
    """A service that writes down what it is told."""

    def __init__(self, node):
        self.node, self.said = node, []

    def say(self, word):
        self.said.append(word)
        return len(self.said)

    def slow(self, word):
        self.say(f"{word} begins")
        return self._slow(word)

    async def _slow(self, word):
        await self.node.sleep(0.05)
        return self.say(f"{word} ends")

    def fail(self):
        raise OverflowError("too much")

    def never(self):
        return Future("a reply that never comes")


@both
def test_1_calling_starts_and_awaiting_waits(make):
    runtime = make()
    log = runtime.serve("log", Log)

    async def main(node):
        future = log.call(Log.say, "called")
        await node.sleep(0.05)
        assert future.done()  # although nobody awaited it
        return await future

    ended = runtime.spawn("main", main)
    runtime.run()
    assert ended.result() == 1


@both
def test_2_a_service_serves_one_call_at_a_time_in_order_of_arrival(make):
    runtime = make()
    log = runtime.serve("log", Log)

    async def main(node):
        calls = [log.call(Log.slow, "a"), log.call(Log.say, "b"), log.call(Log.slow, "c")]
        await all_of(calls, list)

    runtime.spawn("main", main)
    runtime.run()
    assert log.service.said == ["a begins", "a ends", "b", "c begins", "c ends"]


@pytest.mark.parametrize("latency_s", [0.0, 0.25])  # 0.25: the card is free as the fetch comes
@pytest.mark.parametrize("small", [0, 1])
def test_2_a_small_fetch_never_overtakes_a_large_push(latency_s, small):
    cluster = Cluster(latency_s=latency_s, machine=Machine(bandwidth_bytes_per_s=1000.0))
    runtime = VirtualRuntime(cluster)
    log = runtime.serve("log", Log)

    async def main(node):
        sizes = [np.zeros(500, np.uint8), np.zeros(small, np.uint8)]
        await all_of([log.call(Log.say, size) for size in sizes], list)
        return node.now()

    ended = runtime.spawn("main", main)
    runtime.run()
    assert [x.nbytes for x in log.service.said] == [500, small]
    assert ended.result() == pytest.approx(0.5 + small / 1000 + 2 * latency_s)


@both
def test_3_calls_go_by_name_so_an_override_is_called(make):
    class Loud(Log):
        def say(self, word):
            return super().say(word.upper())

    runtime = make()
    log = runtime.serve("log", Loud)

    async def main(node):
        await log.call(Log.say, "hush")  # named through the parent class

    runtime.spawn("main", main)
    runtime.run()
    assert log.service.said == ["HUSH"]


@both
def test_5_compute_runs_the_function_and_6_a_service_may_call_another(make):
    class Middle:
        def __init__(self, node, log):
            self.node, self.log = node, log

        async def relay(self, word):
            return await self.log.call(Log.say, await self.node.compute(str.upper, word))

    runtime = make()
    log = runtime.serve("log", Log)
    middle = runtime.serve("middle", Middle, log)

    async def main(node):
        return await middle.call(Middle.relay, "word")

    ended = runtime.spawn("main", main)
    runtime.run()
    assert ended.result() == 1
    assert log.service.said == ["WORD"]


@both
def test_7_a_main_that_fails_unawaited_ends_the_run(make):
    require_end_by_lost_error(make(), 5.0)


@both
def test_7_an_awaited_failure_is_the_waiters(make):
    runtime = make()
    log = runtime.serve("log", Log)

    async def main(node):
        with pytest.raises(ServiceError, match=r"log\.fail, called by main, .*too much") as caught:
            await log.call(Log.fail)
        assert isinstance(caught.value.__cause__, OverflowError)

    runtime.spawn("main", main)
    runtime.run()


@both
@pytest.mark.parametrize("together", [False, True])
def test_7_a_failed_call_that_nobody_awaits_is_raised_by_run(make, together):
    runtime = make()
    log = runtime.serve("log", Log)

    async def main(node):
        future = log.call(Log.fail)
        _ = all_of([future], list) if together else future
        await node.sleep(0.05)

    runtime.spawn("main", main)
    with pytest.raises(ServiceError, match="too much"):
        runtime.run()


@both
def test_7_a_deadlock_names_each_waiter(make):
    runtime = make()
    log = runtime.serve("log", Log)

    async def main(node):
        await log.call(Log.never)

    runtime.spawn("replica/0", main)
    runtime.spawn("replica/1", main)
    with pytest.raises(DeadlockError, match=r"replica/0 waits for never of log; replica/1 waits"):
        runtime.run()


@both
def test_9_randomness_depends_on_seed_and_name_only(make):
    async def draw(node):
        return node.random().integers(1 << 40)

    def drawn(seed, order):
        runtime = make(seed=seed)
        futures = {name: runtime.spawn(name, draw) for name in order}
        runtime.run()
        return {name: int(future.result()) for name, future in futures.items()}

    reference = VirtualRuntime(seed=1)
    expected = reference.spawn("a", draw)
    reference.run()
    assert drawn(1, "ab") == drawn(1, "ba")
    assert drawn(1, "ab")["a"] == int(expected.result())  # on every runtime
    assert drawn(1, "ab")["a"] != drawn(1, "ab")["b"]
    assert drawn(1, "ab") != drawn(2, "ab")


@both
def test_a_deferred_reply_leaves_the_service_free(make):
    class Gate:
        def __init__(self, node):
            self.opened = Future("opening")

        def wait(self):
            return self.opened

        def open(self):
            self.opened.set_result("open")

    runtime = make()
    gate = runtime.serve("gate", Gate)

    async def waits(node):
        return await gate.call(Gate.wait)

    async def opens(node):
        await node.sleep(0.05)
        await gate.call(Gate.open)

    ended = runtime.spawn("waits", waits)
    runtime.spawn("opens", opens)
    runtime.run()
    assert ended.result() == "open"


@both
def test_first_takes_the_first_or_times_out(make):
    runtime = make()

    async def main(node):
        never = Future("never")
        slow, fast = node.sleep(1.0), node.sleep(0.05)
        return await node.first([slow, fast]), await node.first([never], timeout_s=0.02)

    ended = runtime.spawn("main", main)
    runtime.run()
    assert ended.result() == (1, None)


@both
def test_a_run_stops_at_its_time(make):
    runtime = make()

    async def endless(node):
        while True:
            await node.sleep(0.01)

    runtime.spawn("endless", endless)
    assert runtime.run(until_s=0.1) == pytest.approx(0.1)


def test_futures_are_settled_once_and_combine():
    assert all_of([], list).result() == []
    assert all_of([ready(1), ready(2)], sum).result() == 3
    assert first_of([Future(), ready(2)]).result() == 1
    future = ready(1)
    with pytest.raises(RuntimeError, match="settled twice"):
        future.set_result(2)
    with pytest.raises(RuntimeError, match="before it is done"):
        Future("x").result()


def test_futures_lose_no_callback_between_threads():
    for _ in range(200):
        future, seen = Future(), []
        adders = [
            threading.Thread(target=lambda f=future, s=seen: f.on_done(lambda: s.append(1)))
            for _ in range(4)
        ]
        for thread in adders:
            thread.start()
        future.set_result(None)
        for thread in adders:
            thread.join()
        assert len(seen) == 4


@pytest.mark.parametrize("seconds", [-1.0, math.inf, math.nan])
def test_a_sleep_that_cannot_end_is_refused(seconds):
    runtime = VirtualRuntime()

    async def main(node):
        await node.sleep(seconds)

    runtime.spawn("main", main)
    with pytest.raises(ValueError, match="sleep"):
        runtime.run()


@pytest.mark.parametrize("what", ["compute", "call"])
def test_threads_end_a_main_that_never_has_to_wait(what):
    runtime = ThreadsRuntime()
    log = runtime.serve("log", Log)

    async def main(node):
        while True:
            await (node.compute(len, "") if what == "compute" else log.call(Log.say, "again"))

    runtime.spawn("main", main)
    assert runtime.run(until_s=0.05) == 0.05
    said = len(log.service.said)
    runtime.run(until_s=0.01)
    assert len(log.service.said) == said  # nothing goes on behind one's back


def test_threads_see_no_deadlock_while_a_call_takes_long():
    class Slow(Log):
        def say(self, word):
            time.sleep(0.4)
            return super().say(word)

    runtime = ThreadsRuntime()
    log = runtime.serve("log", Slow)

    async def main(node):
        return await log.call(Log.say, node.name)

    ended = [runtime.spawn(f"main/{i}", main) for i in range(2)]
    runtime.run()
    assert sorted(e.result() for e in ended) == [1, 2]


def test_threads_see_no_deadlock_while_an_observer_serves_for_others():
    class Slow(Log):
        def say(self, word):
            time.sleep(0.3)
            return super().say(word)

    runtime = ThreadsRuntime()
    log = runtime.serve("log", Slow)

    async def observer(node):
        await log.call(Log.say, "first")

    async def main(node):
        await node.sleep(0.1)  # while the observer has the turn
        return await all_of([log.call(Log.say, node.name) for _ in range(3)], list)

    runtime.observe("observer", observer)
    ended = runtime.spawn("main", main)
    runtime.run()
    assert len(ended.result()) == 3


def test_threads_that_end_before_they_began_are_not_waited_for():
    """A process of Ray that has just come back, when the run is over."""

    async def main(node):
        raise AssertionError("it never began")

    runtime = ThreadsRuntime()
    runtime.spawn("main", main)
    runtime.finish()
