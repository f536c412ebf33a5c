"""Mini-batch SGD: the single-replica baseline, and synchronous data parallelism.

With one replica the parameters live on the replica's own machine, and nothing travels:
the "SGD [1]" of Dean et al. 2012, Figure 4. With more, each step averages the gradients
of all replicas at the same parameters, and takes as long as the slowest of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, final

import jax
import optax

from dbjax.data.stream import Stream
from dbjax.errors import DbjaxError, ServiceError
from dbjax.optim.inputs import as_rule
from dbjax.parameter_server import (
    AccumulatedGradient,
    ParameterServer,
    Push,
    Report,
    ServerRule,
    Shard,
    ShardState,
    Snapshot,
    require_backups,
)
from dbjax.runtime.interface import Future, Node, Runtime, ready
from dbjax.task import Program, Task, require_config
from dbjax.types import Slice


@dataclasses.dataclass(frozen=True)
class Config:
    """Mini-batch SGD, or any other optax rule.

    Attributes:
      rule: applied to the mean of the replicas' gradients.
      replicas: that compute a gradient for every step, each on its own part of the data.
      shards: of the parameters; 1 when there is one replica.
      shard_backups: copies of every shard on machines of their own, 0 or 1.
      steps: updates in total; None: until the run's time is over.
    """

    rule: optax.GradientTransformation = optax.sgd(0.05)
    replicas: int = 1
    shards: int = 1
    shard_backups: int = 0
    steps: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rule", as_rule("sgd.rule", self.rule))
        require_config("sgd", self, at_least_one=("replicas", "shards"))
        if self.replicas == 1 and self.shards != 1:
            raise ValueError(
                f"sgd.shards={self.shards}: a single replica keeps its parameters; use 1"
            )
        require_backups("sgd", self.shard_backups)
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"sgd.steps={self.steps} must be at least 1, or None")


@jax.jit
def _mean(gradients: list[Slice]) -> Slice:
    mean: Slice = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]) / len(parts), *gradients)
    return mean


class Behind(DbjaxError):
    """Others are at a later step, which a restored shard has told a replica too late."""

    def __init__(self, step: int) -> None:
        super().__init__(f"others wait at step {step}")
        self.step = step


@dataclasses.dataclass(frozen=True, slots=True)
class StepState:
    """All that a synchronous shard knows."""

    shard: ShardState
    steps: int
    arrived: tuple[Push, ...]


@final
class SynchronousShard:
    """A shard that answers a step's pushes together, once it has all of them."""

    def __init__(
        self,
        node: Node,
        params: Slice,
        rule: ServerRule,
        replicas: int,
    ) -> None:
        self._shard = Shard(node, params, rule)
        if replicas > 1:
            _mean.lower([params] * replicas).compile()  # before anybody pushes
        self._replicas = replicas
        self._arrived: dict[str, tuple[Push, Future[Snapshot]]] = {}
        self._steps = 0
        self._node, self._lost = node, False  # all that it knew, and no step was taken since
        self._done: dict[str, Future[None]] = {}

    def fetch(self, replica: str) -> Snapshot:
        return self._shard.fetch(replica)

    def peek(self) -> Snapshot:
        return self._shard.peek()

    def report(self) -> Report:
        return self._shard.report()

    def taken(self) -> tuple[int, bool]:
        """How many steps all replicas have taken, and whether the shard has lost some of them."""
        return self._steps, self._lost

    def state(self) -> StepState:
        """All that it knows, and what has arrived for the next step."""
        return StepState(
            self._shard.state(), self._steps, tuple(p for p, _ in self._arrived.values())
        )

    def checkpoint(self) -> StepState:
        """What of it outlives the run: what has arrived for the next step is computed again."""
        return StepState(self._shard.state(), self._steps, ())

    def restore(self, state: StepState, *, checkpoint: bool = False) -> None:
        """Knows what a state says, and nothing else; whoever waits for a reply calls again."""
        self._shard.restore(state.shard, checkpoint=checkpoint)
        self._steps, self._lost = state.steps, checkpoint and self._node.returned
        self._arrived = {push.replica: (push, Future()) for push in state.arrived}

    def step(self, push: Push) -> Future[Snapshot]:
        """Replies, to all replicas, the parameters after applying the mean gradient.

        To a replica that came back from the dead, and repeats a step, at once. Of two gradients
        of a replica for one step the first counts.

        Raises:
          Behind: others wait for a later step.
        """
        if self._done:  # all steps were taken, and this shard has lost some
            return ready(self._shard.fetch(push.replica))
        latest = max((p.sequence for p, _ in self._arrived.values()), default=self._steps)
        if self._arrived and push.sequence < latest:
            raise Behind(latest)
        if push.sequence < self._steps:
            return ready(self._shard.fetch(push.replica))
        if push.sequence > latest:  # the shard was restored: nobody can wait for an earlier step
            self._leave_behind(push.sequence)
        reply: Future[Snapshot] = Future("the other replicas' gradients")
        known = self._arrived.get(push.replica, (push, reply))
        self._arrived[push.replica] = (known[0], reply)
        if len(self._arrived) == self._replicas:
            self._finish_step()
        return reply

    def done(self, replica: str) -> Future[None]:
        """A replica has taken all its steps; answers when all have.

        Until then its call is made again to a shard that is restored: so that this knows. One that
        is restored answers at once: others may have had their answers, and be gone.
        """
        self._done[replica] = Future("the other replicas' end")
        arrived, self._arrived = self._arrived, {}
        for behind, (_, reply) in arrived.items():
            reply.set_result(self._shard.fetch(behind))
        if self._lost or len(self._done) == self._replicas:
            for answer in self._done.values():
                if not answer.done():
                    answer.set_result(None)
        return self._done[replica]

    def _leave_behind(self, step: int) -> None:
        """Those that wait for an earlier step have to come to this one."""
        arrived, self._arrived = self._arrived, {}
        for _, reply in arrived.values():
            reply.set_error(Behind(step))

    def _finish_step(self) -> None:
        arrived, self._arrived = sorted(self._arrived.items()), {}  # one order of summation
        pushes = [push for _, (push, _) in arrived]
        self._steps, self._lost = pushes[0].sequence + 1, False
        gradient = pushes[0].gradient
        if len(pushes) > 1:
            gradient = _mean([push.gradient for push in pushes])
        self._shard.push(
            dataclasses.replace(
                pushes[0],
                gradient=gradient,
                examples=sum(push.examples for push in pushes),
                nbytes=sum(push.nbytes for push in pushes),
            )
        )
        for replica, (_, reply) in arrived:
            reply.set_result(self._shard.fetch(replica))


async def _next(server: ParameterServer[SynchronousShard], config: Config) -> int:
    """The step where a replica goes on that comes back, from what the shards know of it.

    When all were taken, of which a shard has lost some, nobody is there to take them again.
    """
    taken = await server.broadcast(SynchronousShard.taken)
    known = [steps for steps, lost in taken if not lost]
    if config.steps is not None and min(known, default=0) >= config.steps:
        return config.steps
    return min(steps for steps, _ in taken)


async def client(
    node: Node,
    server: ParameterServer[SynchronousShard],
    gradient_fn: Callable[..., Any],
    batches: Stream,
    config: Config,
    nodes_can_fail: bool,
) -> None:
    """One replica: all of them take step k at the same parameters."""
    if (kept := node.saved_progress()) is not None:  # the run is taken up exactly where it stood
        step, params = kept
    else:
        step = await _next(server, config) if node.incarnation else 0
        params = await server.fetch(SynchronousShard.fetch, node.name)
    while config.steps is None or step < config.steps:
        node.save_progress((step, params))
        batch = batches.at(step)
        loss, gradient = await node.compute(gradient_fn, params.slices, batch)
        accrued = AccumulatedGradient().plus(gradient, params.versions, batches.batch_size)
        try:
            params = await server.push_and_fetch(
                SynchronousShard.step, accrued.messages(node.name, step)
            )
        except ServiceError as error:
            if not isinstance(error.__cause__, Behind):
                raise
            step = error.__cause__.step
            params = await server.fetch(SynchronousShard.fetch, node.name)
            continue
        node.record(step=step, loss=loss)
        step += 1
    ending = server.broadcast(SynchronousShard.done, node.name)
    if nodes_can_fail:  # a shard that is restored is told again
        await ending


def program(runtime: Runtime, task: Task, config: Config) -> Program:
    """Places shards and replicas; a single replica and its parameters share a machine."""
    streams = [task.batches(r, config.replicas) for r in range(config.replicas)]
    server = ParameterServer.serve(
        runtime,
        SynchronousShard,
        task.start,
        config.shards,
        config.replicas,
        name="shard" if config.replicas > 1 else "replica",
        backups=config.shard_backups,
        sharding=task.sharding,
        rule=config.rule,
    )
    gradients = server.gradients_of(task.loss, task.batch, config.replicas)
    processes = [
        runtime.spawn(
            f"replica/{r}",
            client,
            server,
            gradient,
            stream,
            config,
            runtime.nodes_can_fail,
        )
        for r, (gradient, stream) in enumerate(zip(gradients, streams, strict=True))
    ]

    def acknowledged(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
        """A step is one push, in the name of the first replica."""
        return {"replica/0": 1 + max((row["step"] for row in rows if "step" in row), default=-1)}

    return Program(server, SynchronousShard, tuple(processes), 0.0, acknowledged=acknowledged)
