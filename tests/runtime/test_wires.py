"""Wires between processes: here both ends are of this one, and no cluster is needed."""

import gc
import os
import secrets
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray", reason="dbjax[ray] is not installed")
from dbjax.runtime.futures import Future
from dbjax.runtime.ray.handle import RayHandle
from dbjax.runtime.ray.hub import Hub
from dbjax.runtime.ray.wire import Ends, Identity
from dbjax.runtime.threads import ThreadsRuntime
from tests.processes import LIMIT_S

KEY = secrets.token_bytes(32)
LARGE = np.ones(10**5)


class Echo:
    def __init__(self, node):
        self.never = Future("never")

    def say(self, word):
        return word

    def wait(self):
        return self.never


class Told(list):
    """What a hub has to say; a message that nobody understands is an error of the program."""

    def __call__(self, wire, message):
        if message[0] == "nonsense":
            raise KeyError("nonsense")
        self.append(message)


def hub(name="hub"):
    threads = ThreadsRuntime()
    threads.serve("echo", Echo)
    made = Hub(threads.engine, Identity(name, "here", os.getpid()), "127.0.0.1", KEY, Told())
    made.wait = answered
    return made


def answered(future):
    until(future.done)


def handle_at(there, here):
    """What `here` knows of the service of another process."""
    here.services = {}
    made = RayHandle("echo", here)
    made.moved(there.address)
    return made


def until(done, timeout_s=LIMIT_S):
    end_s = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < end_s
        time.sleep(0.001)


def end(one):
    """What the end of a process does."""
    one.close()
    for segment in one.arena._segments.values():
        os.close(segment.handle)


def left_open(one):
    """Wires, files and mapped segments."""
    gc.collect()
    mapped = Path("/proc/self/maps").read_text().count("memfd:dbjax")
    return len(one._wires), len(os.listdir("/proc/self/fd")), mapped


@pytest.mark.parametrize("who_stays_calls", [True, False])
def test_those_who_come_and_go_leave_nothing(who_stays_calls):
    stays, counts = hub(), []
    before = set(threading.enumerate())  # of other tests too, which may end meanwhile
    for _ in range(9):
        comes = hub()
        caller, called = (stays, comes) if who_stays_calls else (comes, stays)
        caller.wait, calls = answered, handle_at(called, caller)
        assert calls.call(Echo.say, LARGE).result().shape == LARGE.shape
        caller.wait = lambda future: None
        calls.call(Echo.wait)  # whose answer keeps the wire
        end(comes)
        stays.bury(comes.address)
        until(lambda: before.issuperset(threading.enumerate()))
        counts.append(left_open(stays))
    assert counts[-1] == counts[2], counts
    end(stays)


def test_what_the_living_read_is_not_written_again_when_their_wire_breaks():
    there, here, other = hub("there"), hub("here"), hub("other")
    calls = handle_at(there, here)
    seen = calls.call(Echo.say, LARGE).result()
    calls._wire.cut()
    until(lambda: ("suspect", 0, "echo", there.address) in here.control)
    until(lambda: there.control == [("lost", 0)])
    others = handle_at(there, other)
    for number in range(5):  # more than are kept for others
        others.call(Echo.say, LARGE * number).result()
    np.testing.assert_array_equal(seen, LARGE)
    segment = there.arena._segments[0]
    assert segment.users > 0
    there.bury(here.address)
    assert segment.users == 0
    for one in (there, here, other):
        end(one)


def test_calls_stay_open_until_the_driver_says_who_is_dead():
    there, here = hub("there"), hub("here")
    calls = handle_at(there, here)
    calls.call(Echo.say, "a").result()
    calls._wire.cut()
    until(lambda: here.control)
    here.wait = lambda future: None
    open_still = calls.call(Echo.say, "b")
    time.sleep(0.05)
    assert not open_still.done()
    assert here.control == [("suspect", 0, "echo", there.address)]  # once
    calls.moved(None)
    assert "echo died before it answered say" in str(open_still.error())
    for one in (there, here):
        end(one)


def test_strangers_hold_up_nobody():
    there, here = hub("there"), hub("here")
    silent, loud = (socket.create_connection(there.address) for _ in range(2))
    loud.sendall(b"\0\0\0\4help")
    assert handle_at(there, here).call(Echo.say, "a").result() == "a"
    for one in (silent, loud):
        one.close()
    until(lambda: len(there._wires) == 1)
    assert there.control == [("lost", 0)] * 2
    for one in (there, here):
        end(one)


def test_an_error_in_a_thread_of_a_wire_ends_it_and_is_told():
    there, here = hub("there"), hub("here")
    lost = threading.Event()
    ends = Ends(lambda *_: None, lambda *_: None, lambda _: lost.set(), here.failed)
    here.connect(there.address, ends).send(("nonsense", 0))
    assert lost.wait(10.0)
    until(lambda: len(there.control) == 2)
    (kind, _, error, _), last = there.control
    assert (kind, str(error), last) == ("failed", "'nonsense'", ("lost", 0))
    for one in (there, here):
        end(one)
