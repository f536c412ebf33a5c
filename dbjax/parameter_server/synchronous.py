"""The shard of synchronous SGD, and a replica's session with such shards.

A shard answers the pushes of a step together, once it has received all of them.
"""

from __future__ import annotations

import dataclasses
from typing import final

import jax

from dbjax.errors import DbjaxError, ServiceError
from dbjax.parameter_server.abstract import AbstractSlice, is_abstract, mean
from dbjax.parameter_server.accumulation import AccumulatedGradient
from dbjax.parameter_server.client import Fetched, ParameterServer
from dbjax.parameter_server.optimizer import ServerRule
from dbjax.parameter_server.shard import Push, Report, Shard, ShardState, Snapshot
from dbjax.runtime.interface import Future, Node, note, ready
from dbjax.types import Slice, Slices


@jax.jit
def _mean(gradients: list[Slice]) -> Slice:
    mean: Slice = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]) / len(parts), *gradients)
    return mean


class Behind(DbjaxError):
    """A replica pushed for a step that is already over, which can happen after a shard is restored.

    Args:
      step: the step at which the other replicas wait.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"the other replicas wait at step {step}")
        self.step = step


@dataclasses.dataclass(frozen=True, slots=True)
class StepState:
    """The complete state of a synchronous shard.

    Attributes:
      shard: the state of the shard that applies the mean gradients.
      steps: the number of steps that all replicas have taken.
      arrived: the pushes that have arrived for the next step.
    """

    shard: ShardState
    steps: int
    arrived: tuple[Push, ...]


@final
class SynchronousShard:
    """A shard that answers the pushes of a step together, once it has received all of them.

    It applies the mean of the replicas' gradients once per step, summed in a fixed order.

    Args:
      node: the node that it runs on.
      params: its slice of the initial parameters.
      rule: the server rule.
      replicas: the number of pushes that make up a step.
    """

    def __init__(self, node: Node, params: Slice, rule: ServerRule, replicas: int) -> None:
        self._shard = Shard(node, params, rule)
        if replicas > 1 and not isinstance(params, AbstractSlice):
            _mean.lower([params] * replicas).compile()  # before the first push arrives
        self._replicas = replicas
        self._arrived: dict[str, tuple[Push, Future[Snapshot]]] = {}
        self._steps = 0
        self._node = node
        self._lost_steps = False  # whether it was restored, and no step has been taken since
        self._done: dict[str, Future[None]] = {}

    def fetch(self, replica: str) -> Snapshot:
        """Returns the current slice, by reference (GETPARAMETERS)."""
        return self._shard.fetch(replica)

    def peek(self) -> Snapshot:
        """Returns the current slice to an observer, without counting it as a fetch."""
        return self._shard.peek()

    def report(self) -> Report:
        """Returns what the shard has done so far, for an observer."""
        return self._shard.report()

    def taken(self) -> tuple[int, bool]:
        """Returns the number of completed steps, and whether the shard has lost some of them."""
        return self._steps, self._lost_steps

    def state(self) -> StepState:
        """Returns the complete state, including the pushes that have arrived for the next step."""
        return StepState(
            self._shard.state(), self._steps, tuple(p for p, _ in self._arrived.values())
        )

    def checkpoint(self) -> StepState:
        """Returns the state to save in a checkpoint.

        It leaves out the pushes for the next step: replicas compute them again.
        """
        return StepState(self._shard.state(), self._steps, ())

    def restore(self, state: StepState, *, checkpoint: bool = False) -> None:
        """Replaces everything the shard knows by a state; callers that wait for a reply call again.

        Args:
          state: the new state.
          checkpoint: whether the state is from a checkpoint, and may therefore lack recent steps.
        """
        self._shard.restore(state.shard, checkpoint=checkpoint)
        self._steps, self._lost_steps = state.steps, checkpoint and self._node.returned
        self._arrived = {push.replica: (push, Future()) for push in state.arrived}

    def step(self, push: Push) -> Future[Snapshot]:
        """Replies to all replicas with the parameters after applying the mean gradient.

        The reply is deferred until all replicas have pushed for the step. A replica that came back
        after a failure and repeats a step is answered at once. If a replica sends two gradients
        for one step, the first counts.

        Args:
          push: a replica's gradient; its sequence number is the number of the step.

        Raises:
          Behind: the other replicas wait at a later step.
        """
        if self._done:  # all steps were taken, and this shard has lost some
            return ready(self._shard.fetch(push.replica))
        latest = max((p.sequence for p, _ in self._arrived.values()), default=self._steps)
        if self._arrived and push.sequence < latest:
            raise Behind(latest)
        if push.sequence < self._steps:
            return ready(self._shard.fetch(push.replica))
        if push.sequence > latest:  # the shard was restored: an earlier step cannot be completed
            self._leave_behind(push.sequence)
        reply: Future[Snapshot] = Future("the other replicas' gradients")
        known = self._arrived.get(push.replica, (push, reply))
        self._arrived[push.replica] = (known[0], reply)
        if len(self._arrived) == self._replicas:
            self._finish_step()
        return reply

    def done(self, replica: str) -> Future[None]:
        """Records that a replica has taken all its steps; answers when all replicas have.

        Until then the replica repeats its call to a shard that was restored, so that the shard
        learns of it again. A restored shard answers at once, because other replicas may have had
        their answers already and have ended.
        """
        self._done[replica] = Future("the other replicas' end")
        arrived, self._arrived = self._arrived, {}
        for behind, (_, reply) in arrived.items():
            reply.set_result(self._shard.fetch(behind))
        if self._lost_steps or len(self._done) == self._replicas:
            for answer in self._done.values():
                if not answer.done():
                    answer.set_result(None)
        return self._done[replica]

    def _leave_behind(self, step: int) -> None:
        """Tells the replicas that wait for an earlier step to continue at this one."""
        arrived, self._arrived = self._arrived, {}
        for _, reply in arrived.values():
            reply.set_error(Behind(step))

    def _finish_step(self) -> None:
        arrived, self._arrived = sorted(self._arrived.items()), {}  # sum in a fixed order
        pushes = [push for _, (push, _) in arrived]
        self._steps, self._lost_steps = pushes[0].sequence + 1, False
        gradient = pushes[0].gradient
        if len(pushes) > 1:
            gradients = [push.gradient for push in pushes]
            gradient = mean(gradients) if is_abstract(gradients) else _mean(gradients)
        for push in pushes[1:]:  # the shard itself notes the first one
            note("applied", push.replica, push.sequence)
        self._shard.push(
            pushes[0]._replace(
                gradient=gradient,
                examples=sum(push.examples for push in pushes),
                nbytes=sum(push.nbytes for push in pushes),
            )
        )
        for replica, (_, reply) in arrived:
            reply.set_result(self._shard.fetch(replica))


@final
class SynchronousSession:
    """A replica's session with synchronous shards; it keeps the replica's step across failures.

    Attributes:
      step: the number of the next step: 0, 1, 2, ...
      params: the parameters before that step.
    """

    def __init__(
        self, node: Node, server: ParameterServer[SynchronousShard], step: int, params: Fetched
    ) -> None:
        self._node, self._server = node, server
        self.step, self.params = step, params

    @classmethod
    async def join(
        cls, node: Node, server: ParameterServer[SynchronousShard], limit: int | None
    ) -> SynchronousSession:
        """Begins a session, or continues one after a failure or in a resumed run.

        Args:
          node: the node that the replica runs on.
          server: the parameter server.
          limit: the total number of steps; None: no limit.
        """
        if (progress := node.saved_progress()) is not None:
            step, params = progress
        else:
            step = await _next_step(server, limit) if node.incarnation else 0
            params = await server.fetch(SynchronousShard.fetch, node.name)
        return cls(node, server, step, params)

    def has_next_step(self, limit: int | None) -> bool:
        """Returns whether a step is left, and if so saves the replica's progress.

        Args:
          limit: the total number of steps; None: no limit.
        """
        if limit is not None and self.step >= limit:
            return False
        self._node.save_progress((self.step, self.params))
        return True

    async def push(self, gradient: Slices, examples: int) -> bool:
        """Pushes the gradient of a step, and waits for the parameters after the step.

        Args:
          gradient: the mean gradient over a mini-batch, a slice for each shard.
          examples: the number of examples in the mini-batch.

        Returns:
          Whether the step was taken. If not, the other replicas are at a later step, and this
          session has moved to that step.
        """
        push = AccumulatedGradient().plus(gradient, self.params.versions, examples)
        messages = push.messages(self._node.name, self.step)
        try:
            self.params = await self._server.push_and_fetch(SynchronousShard.step, messages)
        except ServiceError as error:
            if not isinstance(error.__cause__, Behind):
                raise
            self.step = error.__cause__.step
            self.params = await self._server.fetch(SynchronousShard.fetch, self._node.name)
            return False
        for shard in self._server.shards:
            note("acknowledged", shard.name, self.step)
        self.step += 1
        return True

    async def leave(self, *, nodes_can_fail: bool) -> None:
        """Tells the shards that the replica has taken all its steps.

        Args:
          nodes_can_fail: whether nodes may fail; if so, this waits until all shards have answered,
            because a restored shard has to be told again.
        """
        leaving = self._server.broadcast(SynchronousShard.done, self._node.name)
        if nodes_can_fail:
            await leaving


async def _next_step(server: ParameterServer[SynchronousShard], limit: int | None) -> int:
    """Returns the step at which a replica that comes back continues.

    If all steps were taken and a shard has lost some of them, the replica does not repeat them: the
    other replicas may have ended, and a step needs all of them.
    """
    taken = await server.broadcast(SynchronousShard.taken)
    known = [steps for steps, lost in taken if not lost]
    if limit is not None and min(known, default=0) >= limit:
        return limit
    return min(steps for steps, _ in taken)
