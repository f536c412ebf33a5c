"""The model replicas, what each is busy with, and backup copies of what takes too long."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, final

from dbjax.algorithms.sandblaster.replica import Replica
from dbjax.algorithms.sandblaster.stragglers import Job, StragglerDetector
from dbjax.algorithms.sandblaster.work_queue import WorkQueue
from dbjax.errors import NodeDied, StateLost
from dbjax.runtime.interface import Arrivals, Future, Handle, Node


@dataclasses.dataclass
class CoordinatorCounts:
    """What happened so far; times on the coordinator's clock."""

    evaluations: int = 0
    examples: int = 0
    evaluating_s: float = 0.0
    commanding_s: float = 0.0
    portions: int = 0
    calls: int = 0  # to replicas
    backups_started: int = 0
    backups_won: int = 0
    replicas_lost: int = 0
    rewinds: int = 0  # to an earlier iteration, since a shard was restored


@dataclasses.dataclass
class _Worker:
    """A replica as the coordinator knows it."""

    handle: Handle[Replica]
    incarnation: int = 0
    up: bool = True
    load: int = 0  # portions that it was given and has not answered
    current: int = -1  # the evaluation of its latest answer
    sending: dict[tuple[int, ...], None] = dataclasses.field(default_factory=dict)


@final
class Scheduler:
    """Has the portions of one evaluation after the other computed by whoever is free.

    Args:
      prefetch: portions that wait at a replica while it works on another.
      backup_after: a portion that takes longer than this many times the median gets a
        backup copy, once nothing else is left to do; infinite: never.
    """

    def __init__(
        self,
        node: Node,
        replicas: Sequence[Handle[Replica]],
        counts: CoordinatorCounts,
        *,
        prefetch: int,
        backup_after: float,
    ) -> None:
        self._counts = counts
        self._node, self._prefetch, self._backup_after = node, prefetch, backup_after
        self._workers = [_Worker(handle) for handle in replicas]
        self._batch, self._evaluation, self._total = WorkQueue({}, {}, 1), -1, 0
        self._arrivals: Arrivals[Job] = node.arrivals("an answer of any replica")
        self._arriving: Future[Job] | None = None
        self._idle: dict[int, None] = {}
        self._stragglers = StragglerDetector(backup_after)
        self._alarm: tuple[float, Future[None]] | None = None
        self._open: dict[Job, None] = {}  # whose answers are not taken; answered ones, in order:
        self._answers: dict[Job, None] = {}

    @property
    def size(self) -> int:
        return len(self._workers)

    async def process(self, batch: WorkQueue, evaluation: int, total: int) -> None:
        """The inner loop of Algorithm 1.2; ends when the shards have every portion once.

        Args:
          total: examples in the batch.
        """
        self._batch, self._evaluation, self._total = batch, evaluation, total
        self._stragglers.begin()
        self._idle.clear()
        for replica, worker in enumerate(self._workers):
            worker.sending.clear()
            self._feed(replica)
        while not batch.done():  # batchProcessed < batchSize
            job = await self._next_answer()
            if job is None:
                self._back_up()
            else:
                self._answered(job)

    def state_dict(self) -> Any:
        """What it knows between two evaluations; not changed afterwards."""
        workers = [(w.incarnation, w.up, w.load, w.current) for w in self._workers]
        jobs = (*self._answers, *(job for job in self._open if job not in self._answers))
        return workers, jobs, self._alarm, self._stragglers.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Knows what another one knew."""
        workers, jobs, self._alarm, usual = state
        for worker, known in zip(self._workers, workers, strict=True):
            worker.incarnation, worker.up, worker.load, worker.current = known
        for job in jobs:
            self._await(job)
        self._stragglers.load_state_dict(usual)

    def _await(self, job: Job) -> None:
        self._open[job] = None
        job.answer.on_done(lambda: self._answers.setdefault(job))
        self._arrivals.add(job, job.answer)

    def _feed(self, replica: int) -> None:
        """Gives a replica what it has time for (modelReplicaAvailable)."""
        worker, batch = self._workers[replica], self._batch
        while worker.up and self._has_time(worker):
            again = batch.take_again()
            if again is not None:
                self._start("redo", replica, again)
                continue
            portion = batch.take(replica)
            if portion is None:
                if worker.load == 0 and (spare := batch.take_spare(replica)) is not None:
                    self._start("process", replica, (spare,), backup=True)
                elif worker.load == 0:
                    self._idle[replica] = None
                    self._send(replica, everything=True)
                break
            self._start("process", replica, (portion,))

    def _has_time(self, worker: _Worker) -> bool:
        if worker.load == 0:
            return True
        prompt = worker.current == self._evaluation and worker.load <= self._prefetch
        return prompt and self._batch.left() > len(self._workers)

    def _send(self, replica: int, *, everything: bool) -> None:
        """Lets a replica send what it should (modelReplicaWorkDone and timeToSendGradients)."""
        for portions in self._batch.send(replica, everything=everything):
            self._start("send", replica, portions)

    def _start(
        self,
        kind: Literal["process", "send", "redo"],
        replica: int,
        portions: tuple[int, ...],
        backup: bool = False,
    ) -> None:
        worker, evaluation = self._workers[replica], self._evaluation
        if kind == "process":
            answer: Future[Any] = worker.handle.call(
                Replica.process_portion, evaluation, self._total, portions[0]
            )
        else:
            part, place = self._batch.part_of(portions)
            if kind == "send":
                answer = worker.handle.call(
                    Replica.send_gradients, evaluation, part, place, portions
                )
            else:
                answer = worker.handle.call(
                    Replica.redo, evaluation, self._total, part, place, portions
                )
            worker.sending[portions] = None
        if kind != "send":
            worker.load += 1
            self._idle.pop(replica, None)
        job = Job(kind, replica, worker.incarnation, evaluation, portions, self._node.now(),
                  max(1, worker.load), backup, answer)  # fmt: skip
        self._counts.calls += 1
        self._counts.backups_started += backup
        self._stragglers.add(job)
        self._await(job)

    def _answered(self, job: Job) -> None:
        worker = self._workers[job.replica]
        try:
            good = job.answer.result()
        except NodeDied:
            self._died(job)
            return
        if job.kind == "return":
            worker.up = True
        elif job.incarnation == worker.incarnation and job.kind != "send":
            worker.load -= 1
        if job.evaluation == self._evaluation:
            if good is None and job.kind in ("process", "redo"):
                raise StateLost(f"evaluation {self._evaluation}: a shard does not know it")
            worker.current = self._evaluation
            self._count(job, good)
        self._feed(job.replica)

    def _count(self, job: Job, good: bool) -> None:
        """Takes an answer into the books of this evaluation; the first copy wins."""
        batch, replica = self._batch, job.replica
        self._stragglers.answered(job, self._node.now())
        if job.kind == "process":
            won = good and batch.computed(replica, job.portions[0])
            self._counts.portions += won
            if not good:
                batch.not_computed(replica, job.portions[0])
                self._feed_idle()
            self._send(replica, everything=False)
        else:
            self._workers[replica].sending.pop(job.portions, None)
            won = good and batch.delivered(job.portions)
            if not good and not batch.is_delivered(job.portions):
                batch.undelivered(job.portions)
                self._feed_idle()
        self._counts.backups_won += won and job.backup

    def _died(self, job: Job) -> None:
        """Everything that a replica had not sent is to do again."""
        worker = self._workers[job.replica]
        if job.incarnation != worker.incarnation:
            return
        worker.incarnation, worker.load, worker.up = worker.incarnation + 1, 0, False
        self._idle.pop(job.replica, None)
        self._counts.replicas_lost += 1
        self._batch.lost(job.replica, list(worker.sending))
        worker.sending.clear()
        up, now_s = worker.handle.up(), self._node.now()
        self._await(Job("return", job.replica, worker.incarnation, -1, (), now_s, 1, False, up))
        self._feed_idle()

    def _feed_idle(self) -> None:
        for replica in list(self._idle):
            self._feed(replica)

    async def _next_answer(self) -> Job | None:
        """The next answer of any replica, or None when it is time for a backup copy."""
        if self._arriving is None:
            self._arriving = self._arrivals.next()
        due = None if await self._node.is_done(self._arriving) else self._due()
        if due is not None:
            waiting: list[Future[Any]] = [self._arriving, self._alarm_at(due[0])]
            if await self._node.first(waiting) == 1:
                self._alarm = None
                return None
        job = await self._arriving
        self._arriving = None
        del self._open[job], self._answers[job]
        self._stragglers.retry()  # whoever answered may have time
        return job

    def _alarm_at(self, due_s: float) -> Future[None]:
        """A sleep until then or earlier; one that is under way is used again."""
        if self._alarm is None or self._alarm[0] > due_s:
            self._alarm = due_s, self._node.sleep(max(0.0, due_s - self._node.now()))
        return self._alarm[1]

    def _due(self) -> tuple[float, Job] | None:
        """When which job should get a backup copy, if there is anyone who has time for it."""
        if not self._idle or self._batch.left() or math.isinf(self._backup_after):
            return None
        return self._stragglers.next(self._closed)

    def _closed(self, job: Job) -> bool:
        if job.kind == "process":
            return self._batch.is_computed(job.portions[0])
        return self._batch.is_delivered(job.portions)

    def _back_up(self) -> None:
        """Copies of what takes too long, for replicas that have nothing to do.

        What the slow one has computed and not sent is copied too: it would be sent only after
        what it is at.
        """
        while (due := self._due()) is not None and due[0] <= self._node.now():
            _, job = due
            helper = self._helper(job)
            if helper is None:
                self._stragglers.postpone(job)
                continue
            self._stragglers.take(job)
            kind: Literal["process", "redo"] = "process" if job.kind == "process" else "redo"
            self._start(kind, helper, job.portions, backup=True)
            self._batch.spare(job.replica)
        self._feed_idle()

    def _helper(self, job: Job) -> int | None:
        """An idle replica that is not at this already."""
        for replica in self._idle:
            if job.kind != "process" and job.portions not in self._workers[replica].sending:
                return replica
            if job.kind == "process" and self._batch.copy(replica, job.portions[0]):
                return replica
        return None
