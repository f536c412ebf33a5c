"""Runs that are stopped after any number of events, and gone on with."""

import dataclasses
import heapq
import json

import numpy as np

import dbjax
from dbjax.runtime.virtual import VirtualRuntime, simulator
from tests.test_conformance import TASK


class Kept(dbjax.Checkpoints):
    """Checkpoints in memory, through JSON as through a file."""

    def __init__(self):
        self.latest = None
        self.all = []

    def save(self, content, arrays=None):
        exact = content.exact
        if exact is not None:
            nodes = json.loads(json.dumps(exact.nodes, allow_nan=False))
            copies = [np.array(array) for array in exact.arrays]
            exact = dataclasses.replace(exact, nodes=nodes, arrays=copies)
        self.latest = dataclasses.replace(content, exact=exact)
        self.all.append(self.latest)

    def wait(self):
        pass


class ShardsOnly(Kept):
    """Only what the shards know: a run that resumes from it does not go on exactly."""

    def save(self, content, arrays=None):
        super().save(dataclasses.replace(content, exact=None, compiled=None))


class Stopping:
    """Takes events from the heap, and ends the run after so many."""

    def __init__(self, after):
        self.left, self.popped = after, 0
        self.machines = None

    def heappop(self, heap):
        self.popped += 1
        self.left -= 1
        if self.left == 0:
            self.machines.stop()
        return heapq.heappop(heap)


def run(config, monkeypatch, stop=-1, **kwargs):
    """The result, and how many events there were."""
    stopping = Stopping(stop)
    before = VirtualRuntime.run

    def noted(self, until_s):
        stopping.machines = self
        return before(self, until_s)

    with monkeypatch.context() as patched:
        patched.setattr(simulator, "heappop", stopping.heappop)
        patched.setattr(VirtualRuntime, "run", noted)
        result = dbjax.run(TASK, config, executor="engine", **kwargs)
    return result, stopping.popped


def told(result):
    """All numbers of a run but those of the wall, and its rows."""
    own = ("wall_s", "interrupted", "executor")
    summary = {k: v for k, v in result.summary.items() if k not in own}
    return summary, [row | {"loss": float(row.get("loss", 0))} for row in result.trace.rows]
