"""Which calls to replicas take too long, and should get a backup copy."""

from __future__ import annotations

import dataclasses
import statistics
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, final

from dbjax.runtime.interface import Future

_LATEST = 99  # durations that the usual one is the median of


@dataclasses.dataclass(eq=False, slots=True)
class Job:
    """A call to a replica that has not been answered.

    Attributes:
      life: of the replica; it is another one after each death.
      portions: that it works on, or sends.
      place: 1 for a portion that is begun at once, 2 for one that waits for another, ...
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
    """Open jobs of one evaluation, and when each of them is overdue.

    Portions are held against the median of the latest, which one slow replica does not
    change; sendings against the longest of this evaluation, since they queue for the same
    shards.

    Args:
      after: how many times as long is too long; 0: at once; infinite: never.
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
        """A new evaluation: whatever is still open is nobody's concern any more."""
        self._longest_sending_s = 0.0
        self._unhelped.clear()
        for queue in self._queues:
            queue.clear()

    def state_dict(self) -> tuple[tuple[float, ...], int, float]:
        """What it has learned of portions."""
        return tuple(self._latest), self._count, self._usual_s

    def load_state_dict(self, usual: tuple[tuple[float, ...], int, float]) -> None:
        """What another one had."""
        latest, self._count, self._usual_s = usual
        self._latest.extend(latest)

    def add(self, job: Job) -> None:
        self._queues[job.kind != "process"].append(job)

    def answered(self, job: Job, now_s: float) -> None:
        """Learns how long such jobs take."""
        took_s = now_s - job.begin_s
        if job.kind == "send":
            self._longest_sending_s = max(self._longest_sending_s, took_s)
        elif job.kind == "process":
            self._latest.append(took_s / job.place)
            self._count += 1
            if self._count.bit_count() == 1 or self._count % (_LATEST // 3) == 0:
                self._usual_s = statistics.median(self._latest)

    def next(self, closed: Callable[[Job], bool]) -> tuple[float, Job] | None:
        """The job that is overdue first, and when; those that are closed are forgotten."""
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
        """It gets a copy."""
        self._queues[job.kind != "process"].remove(job)

    def postpone(self, job: Job) -> None:
        """Nobody can help now; `retry` brings it back."""
        self.take(job)
        self._unhelped.append(job)

    def retry(self) -> None:
        for job in reversed(self._unhelped):
            self._queues[job.kind != "process"].appendleft(job)
        self._unhelped.clear()
