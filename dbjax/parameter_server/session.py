"""A replica's session with the parameter server: fetches, local steps, and pushes.

Paper: section 4.1, Algorithm 1.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, final

import optax

from dbjax.parameter_server.accumulation import NOTHING, AccumulatedGradient
from dbjax.parameter_server.client import Fetched, ParameterServer
from dbjax.parameter_server.partition import slice_nbytes
from dbjax.parameter_server.shard import Shard
from dbjax.runtime.interface import Future, Node, note_each, ready
from dbjax.types import Slice, Slices


@dataclasses.dataclass(frozen=True)
class SessionOptions:
    """How often a replica communicates with the parameter server, and what it does in between.

    Attributes:
      batch_size: the number of examples in a mini-batch.
      n_fetch: the number of mini-batches between two fetches; None: the method decides when to
        fetch.
      n_push: the number of mini-batches between two pushes.
      overlap: whether computation continues while a fetch is in flight.
      local_rule: the optax rule of local steps between fetches; None: there are no local steps.
      push_bytes: a function from a slice of the gradient to its size on the wire, in bytes.
    """

    batch_size: int
    n_fetch: int | None = 1
    n_push: int = 1
    overlap: bool = False
    local_rule: optax.GradientTransformation | None = None
    push_bytes: Callable[[Slice], int] = slice_nbytes


class _Progress(NamedTuple):
    """The complete state of a session at the beginning of a step."""

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
    """Manages the state of a replica between its gradients, so that a client reads like the paper.

    The session fetches parameters in the background, takes local steps, accumulates gradients,
    numbers the pushes, and keeps at most one push in flight. When the replica's node comes back
    after a failure, the session continues after the last push that every shard has applied. When a
    run is resumed exactly, the session continues from the step at which the run stopped.

    Attributes:
      memory: a value that a method keeps from step to step, such as the error of a compression;
        None at first, and after a failure. Assign a new value instead of mutating the old one.
      params: the newest parameters that have arrived, with local steps applied; None if none have
        arrived, or if the next fetch will replace them.
    """

    def __init__(
        self,
        node: Node,
        server: ParameterServer[Shard],
        options: SessionOptions,
        progress: _Progress,
    ) -> None:
        self._node, self._server, self._options = node, server, options
        self._optimizer = options.local_rule and server.local_optimizer(options.local_rule)
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
        """Begins a session, or continues one after a failure or in a resumed run.

        Args:
          node: the node that the replica runs on.
          server: the parameter server.
          options: how the session communicates.

        Returns:
          A session at the first step that is left to take.
        """
        progress = node.saved_progress()
        if progress is None:
            pushes = 0
            if node.incarnation:
                pushes = server.least(await server.broadcast(Shard.pushed, node.name))
            step = pushes * options.n_push
            progress = _Progress(step, pushes, None, NOTHING, None, ready(None), None, None)
        return cls(node, server, options, progress)

    @property
    def slices(self) -> Slices:
        """The replica's own parameters, a slice for each shard.

        A method may assign new values of the same shapes.
        """
        assert self.params is not None
        return self.params.slices

    @slices.setter
    def slices(self, slices: Slices) -> None:
        assert self.params is not None
        self.params = self.params._replace(slices=slices)

    def steps(self, limit: int | None) -> Iterator[int]:
        """Iterates over the remaining steps, and saves the replica's progress before each.

        Args:
          limit: the total number of steps; None: the iterator never ends.

        Yields:
          The number of each step; a new session begins at 0.
        """
        while limit is None or self._step < limit:
            self._node.save_progress(self._progress())
            yield self._step
            self._step += 1

    def start_fetch(self) -> None:
        """Requests newer parameters, unless a fetch is still in flight when the step needs them."""
        self._fetch_due = True

    async def parameters(self) -> Slices:
        """Returns the newest parameters that have arrived, a slice for each shard.

        It waits for the first parameters. Without `overlap` it also waits for the fetch that
        `start_fetch` requested.
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
        """Fetches the shards' current parameters, and leaves the replica's own unchanged."""
        return await self._server.fetch(Shard.fetch, self._node.name)

    def accumulate(
        self, gradient: Slices, *, at: Fetched | None = None, examples: int | None = None
    ) -> None:
        """Adds a gradient to the next push.

        Args:
          gradient: the gradient, a slice for each shard.
          at: the parameters at which it was computed; None: the replica's own.
          examples: the number of examples it was computed from; None: one mini-batch.
        """
        computed_at = at or self.params
        assert computed_at is not None
        seen = self._options.batch_size if examples is None else examples
        self._accumulated = self._accumulated.plus(gradient, computed_at.versions, seen)

    def step_locally(self, gradient: Slices) -> None:
        """Applies the local rule to the replica's own parameters.

        It does nothing if the next fetch will replace the parameters anyway.

        Args:
          gradient: the gradient, a slice for each shard.
        """
        n_fetch = self._options.n_fetch
        next_fetches = n_fetch is not None and (self._step + 1) % n_fetch == 0
        if next_fetches and not self._options.overlap:
            self.params = None  # the old slices are no longer needed: this frees their memory
        elif self._optimizer is not None and self.params is not None:
            slices = self._optimizer.step(self.params.slices, gradient)
            self.params = self.params._replace(slices=slices)

    async def start_push(self) -> None:
        """Waits until the previous push is acknowledged, then starts the next one.

        The push carries the accumulated gradient, which is empty afterwards.

        Raises:
          ValueError: no gradient has been accumulated since the last push.
        """
        await self._acknowledged()
        options = self._options
        messages = self._accumulated.messages(self._node.name, self._pushes, options.push_bytes)
        self._accumulated = NOTHING
        self._pushing = self._server.push(Shard.push, messages)
        self._pushes += 1

    async def flush(self) -> None:
        """Pushes what is left of the accumulated gradient, and waits for all acknowledgements."""
        await self._acknowledged()
        if self._accumulated.gradient is not None:
            await self.start_push()
            await self._acknowledged()

    async def _acknowledged(self) -> None:
        """Waits until every shard has acknowledged the last push, and notes it in the event log."""
        await self._pushing
        if self._pushes:
            note_each("acknowledged", self._server.names, self._pushes - 1)

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
