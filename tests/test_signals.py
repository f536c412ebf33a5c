"""Ctrl-C ends a command wherever it comes."""

import gc
import os
import signal
import subprocess
import sys
import time

import pytest

from dbjax import signals
from dbjax.signals import reliable_interrupt
from tests.processes import LIMIT_S


@pytest.fixture(autouse=True)
def not_ignored():
    """Whoever runs tests in the background of a shell ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_self(*_):
    os.kill(os.getpid(), signal.SIGINT)


def wait(_):
    time.sleep(LIMIT_S)
    pytest.fail("nothing was heard")


def test_ctrl_c_is_keyboard_interrupt_and_all_is_as_before_afterwards():
    before = signal.getsignal(signal.SIGINT), sys.unraisablehook
    with pytest.raises(KeyboardInterrupt), reliable_interrupt():
        wait(interrupt_self())
    assert (signal.getsignal(signal.SIGINT), sys.unraisablehook) == before


def interrupt_during_a_collection():
    """Interrupts this process in a callback of the garbage collector, as JAX has one."""

    def callback(phase, _):
        if not came:
            came.append(phase)
            interrupt_self()
            for _ in range(1_000):  # bytecode, in which Python raises
                pass

    came = []
    gc.callbacks.append(callback)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(callback)
    assert came == ["start"]


def test_one_that_the_garbage_collector_forgets_is_heard_all_the_same():
    begin_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt), reliable_interrupt():
        wait(interrupt_during_a_collection())
    assert time.monotonic() - begin_s < LIMIT_S  # and not when the sleep is over


def test_one_that_comes_just_before_a_system_call_is_sent_again(monkeypatch):
    """Such a signal does not wake the call, as one that was never sent."""
    sent, send = [], signals._interrupt_main

    def lose_the_first():
        sent.append(time.monotonic())
        if len(sent) > 1:
            send()

    monkeypatch.setattr(signals, "_interrupt_main", lose_the_first)
    begin_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt), reliable_interrupt():
        wait(interrupt_during_a_collection())
    assert time.monotonic() - begin_s < LIMIT_S
    assert len(sent) == 2  # and not once more after it was heard


def test_one_that_an_import_makes_another_error_of_is_one_all_the_same():
    def import_something():
        try:
            wait(interrupt_self())
        except KeyboardInterrupt as interrupted:
            raise ImportError("initialization failed") from interrupted

    with pytest.raises(KeyboardInterrupt), reliable_interrupt():
        import_something()


def test_errors_of_their_own_stay_what_they_are():
    with pytest.raises(ValueError, match="a mistake"), reliable_interrupt():
        raise ValueError("a mistake")


def test_a_command_that_is_still_importing_ends_with_130_and_one_word():
    script = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["-m"]
import experiments
os.kill(os.getpid(), signal.SIGINT)
time.sleep(30)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert (ended.returncode, ended.stderr) == (130, "interrupted\n")
