"""Schedules portions on the model replicas, with backup copies of those that take too long.

Paper: section 4.2, on load balancing.
"""

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
    """Counters of a run.

    Attributes:
      evaluations: the number of evaluations of the loss and its gradient.
      examples: the number of examples in all these evaluations.
      evaluating_s: the time spent in evaluations, in seconds on the coordinator's clock.
      commanding_s: the time spent in commands to the shards, in seconds on the same clock.
      portions: the number of portions computed; copies do not count.
      calls: the number of calls to replicas.
      backups_started: the number of backup copies that were started.
      backups_won: the number of backup copies that finished first.
      replicas_lost: the number of failures of replicas.
      rewinds: the number of returns to an earlier iteration, after a shard was restored.
    """

    evaluations: int = 0
    examples: int = 0
    evaluating_s: float = 0.0
    commanding_s: float = 0.0
    portions: int = 0
    calls: int = 0
    backups_started: int = 0
    backups_won: int = 0
    replicas_lost: int = 0
    rewinds: int = 0


@dataclasses.dataclass
class _Worker:
    """What the coordinator knows about a replica.

    Attributes:
      handle: the replica's handle.
      incarnation: the number of its failures so far.
      up: whether its node is up.
      load: the number of calls to compute portions that it has not answered.
      current: the evaluation of its latest answer.
      sending: the groups of portions whose gradients it is sending, in order.
    """

    handle: Handle[Replica]
    incarnation: int = 0
    up: bool = True
    load: int = 0
    current: int = -1
    sending: dict[tuple[int, ...], None] = dataclasses.field(default_factory=dict)


@final
class Scheduler:
    """Distributes the portions of each evaluation to the replicas that are free.

    Args:
      node: the node that the coordinator runs on.
      replicas: handles of the replicas.
      counts: the counters of the run, which this object updates.
      prefetch: the number of portions that wait at a replica while it works on another.
      backup_after: when no portion is left to begin, a portion that takes longer than this many
        times the median gets a backup copy; infinite: never.
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
        self._open: dict[Job, None] = {}  # the jobs whose answers have not been taken
        self._answers: dict[Job, None] = {}  # those that have been answered, in order

    @property
    def size(self) -> int:
        """The number of replicas."""
        return len(self._workers)

    async def process(self, batch: WorkQueue, evaluation: int, total: int) -> None:
        """Runs the inner loop of Algorithm 1.2 until the shards have every portion once.

        Args:
          batch: the portions of the evaluation.
          evaluation: the number of the evaluation.
          total: the number of examples in the batch.

        Raises:
          StateLost: a shard was restored, and does not know the evaluation.
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
        """Returns the state between two evaluations, which does not change afterwards."""
        workers = [(w.incarnation, w.up, w.load, w.current) for w in self._workers]
        jobs = (*self._answers, *(job for job in self._open if job not in self._answers))
        return workers, jobs, self._alarm, self._stragglers.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Restores what `state_dict` returned."""
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
        """Gives a replica as much work as it has time for (modelReplicaAvailable)."""
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
        """Has a replica send the gradients that are due.

        Paper: Algorithm 1.2, modelReplicaWorkDone and timeToSendGradients.
        """
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
                raise StateLost(f"a restored shard does not know evaluation {self._evaluation}")
            worker.current = self._evaluation
            self._count(job, good)
        self._feed(job.replica)

    def _count(self, job: Job, good: bool) -> None:
        """Records an answer of this evaluation; the first copy of a portion counts."""
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
        """Handles the failure of a replica: everything that it had not sent is computed again."""
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
        """Waits for the next answer of any replica; None: a backup copy is due first."""
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
        self._stragglers.retry()  # the replica that answered may have time for a copy
        return job

    def _alarm_at(self, due_s: float) -> Future[None]:
        """Returns a sleep until `due_s` or earlier; a sleep in progress is used again."""
        if self._alarm is None or self._alarm[0] > due_s:
            self._alarm = due_s, self._node.sleep(max(0.0, due_s - self._node.now()))
        return self._alarm[1]

    def _due(self) -> tuple[float, Job] | None:
        """Returns the next job to get a backup copy, and when; None: there is none.

        There is none while portions are left to begin, or while no replica is idle.
        """
        if not self._idle or self._batch.left() or math.isinf(self._backup_after):
            return None
        return self._stragglers.next(self._closed)

    def _closed(self, job: Job) -> bool:
        """Returns whether a job needs no copy, because its portions are computed or delivered."""
        if job.kind == "process":
            return self._batch.is_computed(job.portions[0])
        return self._batch.is_delivered(job.portions)

    def _back_up(self) -> None:
        """Gives idle replicas copies of the jobs that are overdue.

        They also get copies of the portions that the slow replica has computed but not sent,
        because it would send them only after its current portion.
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
        """Returns an idle replica that is not working on this job already, or None."""
        for replica in self._idle:
            if job.kind != "process" and job.portions not in self._workers[replica].sending:
                return replica
            if job.kind == "process" and self._batch.copy(replica, job.portions[0]):
                return replica
        return None
