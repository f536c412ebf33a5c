"""A replica's session with the parameter server: what happens between two of its gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, final

import optax

from dbjax.parameter_server.accumulation import AccumulatedGradient
from dbjax.parameter_server.client import Fetched, ParameterServer
from dbjax.parameter_server.optimizer import LocalOptimizer
from dbjax.parameter_server.partition import slice_nbytes
from dbjax.parameter_server.shard import Shard
from dbjax.runtime.interface import Future, Node, ready
from dbjax.types import Slice, Slices


@dataclasses.dataclass(frozen=True)
class SessionOptions:
    """How often a replica talks to the parameter server, and what it does in between.

    Attributes:
      batch_size: examples in a mini-batch.
      n_fetch: mini-batches between two fetches; None: the method fetches by itself.
      n_push: mini-batches between two pushes.
      overlap: computation goes on while a fetch is under way.
      local_rule: the rule of local steps between fetches; None: there are no local steps.
      push_bytes: how many bytes a slice of the gradient takes on its way to the shard.
    """

    batch_size: int
    n_fetch: int | None = 1
    n_push: int = 1
    overlap: bool = False
    local_rule: optax.GradientTransformation | None = None
    push_bytes: Callable[[Slice], int] = slice_nbytes


class _Progress(NamedTuple):
    """All that a session knows at the beginning of a step."""

    step: int
    pushes: int
    params: Fetched | None
    accumulated: AccumulatedGradient
    fetching: Future[Fetched] | None
    pushing: Future[Any]
    local_state: Any
    memory: Any


@final
class ReplicaSession:
    """What a replica keeps and does around its gradients, so that a client reads like the paper.

    It fetches parameters in the background, takes local steps, accumulates gradients, numbers the
    pushes, and keeps at most one push in flight. A replica whose node comes back after a failure
    goes on from the last push that every shard has. A replica of a run that is resumed exactly
    goes on where it stood.

    Attributes:
      memory: whatever a method wants to remember from step to step, such as the error of a
        compression; None at first, and after a failure. Assign new values, never change one.
      params: the newest parameters that have arrived, after local steps; None: none yet, or the
        next fetch replaces them.
    """

    def __init__(
        self,
        node: Node,
        server: ParameterServer[Shard],
        options: SessionOptions,
        progress: _Progress,
    ) -> None:
        self._node, self._server, self._options = node, server, options
        self._optimizer = options.local_rule and LocalOptimizer(
            options.local_rule, server.partition
        )
        self._step, self._pushes = progress.step, progress.pushes
        self.params, self.memory = progress.params, progress.memory
        self._accumulated = progress.accumulated
        self._fetching, self._pushing = progress.fetching, progress.pushing
        if self._optimizer is not None:
            self._optimizer.state = progress.local_state
        self._fetch_due = False

    @classmethod
    async def join(
        cls, node: Node, server: ParameterServer[Shard], options: SessionOptions
    ) -> ReplicaSession:
        """Begins a session; or continues one, after a failure or in a resumed run."""
        progress = node.saved_progress()
        if progress is None:
            pushes = min(await server.broadcast(Shard.pushed, node.name)) if node.incarnation else 0
            step, nothing = pushes * options.n_push, AccumulatedGradient()
            progress = _Progress(step, pushes, None, nothing, None, ready(None), None, None)
        return cls(node, server, options, progress)

    @property
    def slices(self) -> Slices:
        """The replica's own parameters; a method may assign others of the same shapes."""
        assert self.params is not None
        return self.params.slices

    @slices.setter
    def slices(self, slices: Slices) -> None:
        assert self.params is not None
        self.params = dataclasses.replace(self.params, slices=slices)

    def steps(self, limit: int | None) -> Iterator[int]:
        """The numbers of the steps that are left, up to `limit` if there is one."""
        while limit is None or self._step < limit:
            self._node.save_progress(self._progress())
            yield self._step
            self._step += 1

    def start_fetch(self) -> None:
        """Asks for newer parameters. If a fetch is under way, the next one begins after it."""
        self._fetch_due = True

    async def parameters(self) -> Slices:
        """The newest parameters that have arrived.

        Waits for the first ones, and for a fetch that was asked for if there is no overlap.
        """
        if self._fetching is not None and await self._node.is_done(self._fetching):
            self.params, self._fetching = self._fetching.result(), None
        if self._fetching is None and (self._fetch_due or self.params is None):
            self._fetching = self._server.fetch(Shard.fetch, self._node.name)
        self._fetch_due = False
        if self._fetching is not None and (self.params is None or not self._options.overlap):
            self.params, self._fetching = await self._fetching, None
        assert self.params is not None
        return self.params.slices

    async def fetch(self) -> Fetched:
        """What the shards hold now. The replica's own parameters stay as they are."""
        return await self._server.fetch(Shard.fetch, self._node.name)

    def accumulate(
        self, gradient: Slices, *, at: Fetched | None = None, examples: int | None = None
    ) -> None:
        """Adds a gradient to the next push.

        Args:
          gradient: a slice for each shard.
          at: the parameters that it was computed at; None: the replica's own.
          examples: that it saw; None: a mini-batch.
        """
        computed_at = at or self.params
        assert computed_at is not None
        seen = self._options.batch_size if examples is None else examples
        self._accumulated = self._accumulated.plus(gradient, computed_at.versions, seen)

    def step_locally(self, gradient: Slices) -> None:
        """Moves the replica's own parameters, unless the next fetch will replace them anyway."""
        n_fetch = self._options.n_fetch
        next_fetches = n_fetch is not None and (self._step + 1) % n_fetch == 0
        if next_fetches and not self._options.overlap:
            self.params = None  # nobody needs the old slices: their memory is free now
        elif self._optimizer is not None and self.params is not None:
            slices = self._optimizer.step(self.params.slices, gradient)
            self.params = dataclasses.replace(self.params, slices=slices)

    async def start_push(self) -> None:
        """Begins to push what was accumulated, once the previous push is acknowledged."""
        await self._pushing
        options = self._options
        messages = self._accumulated.messages(self._node.name, self._pushes, options.push_bytes)
        self._accumulated = AccumulatedGradient()
        self._pushing = self._server.push(Shard.push, messages)
        self._pushes += 1

    async def flush(self) -> None:
        """Pushes what is left, and waits until every push is acknowledged."""
        await self._pushing
        if self._accumulated.gradient is not None:
            await self.start_push()
            await self._pushing

    def _progress(self) -> _Progress:
        return _Progress(
            self._step,
            self._pushes,
            self.params,
            self._accumulated,
            self._fetching,
            self._pushing,
            self._optimizer.state if self._optimizer is not None else None,
            self.memory,
        )
