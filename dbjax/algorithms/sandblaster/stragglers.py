"""Detects the calls to replicas that take too long and should get a backup copy."""

from __future__ import annotations

import dataclasses
import statistics
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, final

from dbjax.runtime.interface import Future

_LATEST = 99  # the usual duration is the median of this many


@dataclasses.dataclass(eq=False, slots=True)
class Job:
    """A call to a replica whose answer has not been taken.

    Attributes:
      kind: "process" computes a portion, "send" sends gradients, "redo" does both for another
        replica, and "return" waits until the replica's node comes back.
      replica: the index of the replica.
      incarnation: the incarnation of the replica, which changes with each failure.
      evaluation: the number of the evaluation that the call belongs to.
      portions: the portions that the replica computes or sends.
      begin_s: the time of the call, in seconds on the coordinator's clock.
      place: 1 for a portion that the replica begins at once, 2 for one that waits for another, ...
      backup: whether the call is a backup copy.
      answer: the future of the answer.
    """

    kind: Literal["process", "send", "redo", "return"]
    replica: int
    incarnation: int
    evaluation: int
    portions: tuple[int, ...]
    begin_s: float
    place: int
    backup: bool
    answer: Future[Any]


@final
class StragglerDetector:
    """Tracks the open jobs of one evaluation, and when each of them is overdue.

    The duration of computing a portion is compared with the median of the latest durations, which
    one slow replica does not change. The duration of sending is compared with the longest of this
    evaluation, since replicas queue for the same shards.

    Args:
      after: a job is overdue after this many times the usual duration; 0: at once; infinite: never.
    """

    def __init__(self, after: float) -> None:
        self._after = after
        self._latest: deque[float] = deque(maxlen=_LATEST)
        self._count = 0
        self._usual_s = 0.0
        self._longest_sending_s = 0.0
        self._queues: tuple[deque[Job], deque[Job]] = (deque(), deque())  # oldest first
        self._unhelped: list[Job] = []

    def begin(self) -> None:
        """Begins a new evaluation: forgets the jobs that are still open."""
        self._longest_sending_s = 0.0
        self._unhelped.clear()
        for queue in self._queues:
            queue.clear()

    def state_dict(self) -> tuple[tuple[float, ...], int, float]:
        """Returns what the detector has learned about the duration of portions."""
        return tuple(self._latest), self._count, self._usual_s

    def load_state_dict(self, usual: tuple[tuple[float, ...], int, float]) -> None:
        """Restores what `state_dict` returned."""
        latest, self._count, self._usual_s = usual
        self._latest.extend(latest)

    def add(self, job: Job) -> None:
        """Adds an open job."""
        self._queues[job.kind != "process"].append(job)

    def answered(self, job: Job, now_s: float) -> None:
        """Records how long a job took.

        Args:
          job: the job that was just answered.
          now_s: the time, in seconds on the coordinator's clock.
        """
        took_s = now_s - job.begin_s
        if job.kind == "send":
            self._longest_sending_s = max(self._longest_sending_s, took_s)
        elif job.kind == "process":
            self._latest.append(took_s / job.place)
            self._count += 1
            if self._count.bit_count() == 1 or self._count % (_LATEST // 3) == 0:
                self._usual_s = statistics.median(self._latest)

    def next(self, closed: Callable[[Job], bool]) -> tuple[float, Job] | None:
        """Returns the job that is overdue first, and when; None: there is no such job.

        Args:
          closed: whether a job needs no copy any more; such jobs are dropped.
        """
        found: tuple[float, Job] | None = None
        for queue, usual_s in zip(
            self._queues, (self._usual_s, self._longest_sending_s), strict=True
        ):
            while queue and closed(queue[0]):
                queue.popleft()
            if queue and (usual_s > 0 or self._after == 0):
                job = queue[0]
                due_s = job.begin_s + self._after * usual_s * job.place
                if found is None or due_s < found[0]:
                    found = due_s, job
        return found

    def take(self, job: Job) -> None:
        """Removes a job, because it gets a copy."""
        self._queues[job.kind != "process"].remove(job)

    def postpone(self, job: Job) -> None:
        """Removes a job until `retry`, because no replica can copy it now."""
        self.take(job)
        self._unhelped.append(job)

    def retry(self) -> None:
        """Brings the postponed jobs back."""
        for job in reversed(self._unhelped):
            self._queues[job.kind != "process"].appendleft(job)
        self._unhelped.clear()
