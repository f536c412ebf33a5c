"""Futures one by one, and what is made of them."""

import threading

import pytest

from dbjax.runtime import ArrivalQueue, Future, all_of, ready


def test_arrivals_come_once_each_in_the_order_in_which_they_were_done():
    arrivals, futures = ArrivalQueue("any"), [Future() for _ in range(4)]
    arrivals.add("late", futures[0])
    arrivals.add("soon", futures[1])
    futures[1].set_result(None)
    arrivals.add("failed", futures[2])
    futures[2].set_error(ValueError())
    arrivals.add("done before", ready(1))
    assert [arrivals.next().result() for _ in range(3)] == ["soon", "failed", "done before"]
    waiting = arrivals.next()
    assert not waiting.done()
    assert waiting.label == "any"
    futures[0].set_result(None)
    assert waiting.result() == "late"


def test_arrivals_lose_nothing_between_threads():
    arrivals, futures = ArrivalQueue("any"), [Future() for _ in range(3000)]
    for key, future in enumerate(futures):
        arrivals.add(key, future)
    halves = [threading.Thread(target=lambda half=half: [f.set_result(None) for f in half])
              for half in (futures[::2], futures[1::2])]  # fmt: skip
    for thread in halves:
        thread.start()
    taken = []
    for _ in futures:
        gate, taking = threading.Event(), arrivals.next()
        taking.on_done(gate.set)
        assert gate.wait(10)
        taken.append(taking.result())
    for thread in halves:
        thread.join()
    assert sorted(taken) == list(range(3000))


def test_then_is_of_the_result_or_the_error():
    future = Future()
    doubled = future.then(lambda x: 2 * x)
    future.set_result(3)
    assert doubled.result() == 6
    failing = Future()
    failed = failing.then(lambda x: x)
    failing.set_error(KeyError("k"))
    with pytest.raises(KeyError):
        failed.result()


def test_of_several_that_fail_the_later_ones_are_seen_with_the_first():
    replies = [Future("a"), Future("b")]
    calls = [reply.then(lambda value: value) for reply in replies]
    together = all_of(calls, list)
    for reply in replies:
        reply.set_error(KeyError(reply.label))
        if not together.awaited:
            with pytest.raises(KeyError):
                together.result()
    assert all(reply.awaited for reply in replies)


def test_results_of_all_are_in_the_order_of_the_futures_whichever_is_done_first():
    futures = [Future(), Future(), ready("c")]
    together = all_of(futures, "-".join)
    futures[1].set_result("b")
    assert not together.done()
    futures[0].set_result("a")
    assert together.result() == "a-b-c"
