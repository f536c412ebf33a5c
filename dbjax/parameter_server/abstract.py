"""Slices without values, on which arithmetic is recorded instead of done.

In virtual time, who computes when depends on sizes and durations, but not on the values of
parameters and gradients. A runtime with an `ArithmeticRecorder` therefore runs an algorithm on
abstract slices, and finds the timing of a run far faster than the run itself would
(`dbjax.schedules`).
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, final

import jax
import optax

from dbjax.errors import DbjaxError, one_line
from dbjax.runtime.interface import current
from dbjax.types import LossFn, Slices


class DependsOnValues(DbjaxError):
    """The timing of a program cannot be recorded without its arithmetic; the message says why."""


@contextlib.contextmanager
def unless_recordable() -> Iterator[None]:
    """Turns every error in the block into `DependsOnValues`.

    An error of the program itself comes again on the engine.
    """
    try:
        yield
    except Exception as error:
        raise _reason(error) from error


def _reason(error: BaseException) -> DependsOnValues:
    """Returns why the timing of a program cannot be found without its arithmetic."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DependsOnValues):
            return cause
        cause = cause.__cause__
    return DependsOnValues(f"its arithmetic cannot be recorded: {one_line(error)}")


class AbstractSlice:
    """A slice of which only the size is known.

    Attributes:
      nbytes: its size, in bytes.
    """

    __slots__ = ("nbytes",)

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def __jax_array__(self) -> Any:
        raise DependsOnValues("it computes with parameters or gradients in a way of its own")


@final
class AbstractParams(AbstractSlice):
    """A slice of parameters.

    Attributes:
      shard: the index of the shard that holds the slice.
      version: the version of the slice, as the shard served it.
      after: the number of the gradient with which a replica took a local step to these parameters;
        -1: they are as the shard served them.
    """

    __slots__ = ("after", "shard", "version")

    def __init__(self, nbytes: int, shard: int, version: int, after: int = -1) -> None:
        self.nbytes, self.shard, self.version, self.after = nbytes, shard, version, after


@final
class AbstractGradient(AbstractSlice):
    """A slice of the sum, or of the mean, of gradients.

    Attributes:
      gradients: the numbers of the gradients, in the order in which they are added.
      mean: whether it is their mean.
    """

    __slots__ = ("gradients", "mean")

    def __init__(self, nbytes: int, gradients: tuple[int, ...], mean: bool = False) -> None:
        self.nbytes, self.gradients, self.mean = nbytes, gradients, mean


@final
class AbstractLoss:
    """The loss that was computed with a gradient.

    Attributes:
      gradient: the number of the gradient.
    """

    __slots__ = ("gradient",)

    def __init__(self, gradient: int) -> None:
        self.gradient = gradient

    def __float__(self) -> float:
        raise DependsOnValues("it looks at the loss while it runs")


@final
class AbstractBatch:
    """A mini-batch of which only the place in the data is known.

    Attributes:
      replica: the number of the replica whose part of the data it is from.
      replicas: the number of replicas among which the data is divided.
      step: its number among the mini-batches of that replica.
    """

    __slots__ = ("replica", "replicas", "step")

    def __init__(self, replica: int, replicas: int, step: int) -> None:
        self.replica, self.replicas, self.step = replica, replicas, step


class RecordedGradient(NamedTuple):
    """How a gradient was computed.

    Attributes:
      replica: the number of the replica.
      replicas: the number of replicas among which the data is divided.
      step: the number of its mini-batch.
      versions: the versions of the shards' slices that the replica had fetched last.
      after: see `AbstractParams`.
      life: how often the replica's node had come back after a failure.
    """

    replica: int
    replicas: int
    step: int
    versions: tuple[int, ...]
    after: int
    life: int


# An update of a shard: the numbers of the gradients whose sum or mean it applied, whether it was
# the mean, when, in seconds on the run's clock, and how many examples it says that they saw. Plain
# tuples are made fastest.
RecordedUpdate = tuple[tuple[int, ...], bool, float, int]


class Clock(Protocol):
    """The clock of a run in virtual time.

    Attributes:
      now_s: the time on it, in seconds.
    """

    now_s: float

    def stop(self) -> None:
        """Makes the run return before the next event."""


@final
class ArithmeticRecorder:
    """Records the arithmetic of replicas and shards.

    Attributes:
      gradients: all gradients, in the order in which replicas began to compute them; the place of
        each is its number.
      stepped: the numbers of the gradients with which replicas took local steps.
      updates: the updates of each shard, in order.
      rule: the rule that the shards apply.
      local_rules: the rules with which replicas take local steps.
      loss: the loss whose gradients are computed.
      clock: the clock of the run, which the runtime sets.
      pause_at: the number of gradients after which the clock is stopped.
    """

    clock: Clock
    rule: optax.GradientTransformation
    loss: LossFn

    def __init__(self) -> None:
        self.local_rules: set[optax.GradientTransformation] = set()
        self.gradients: list[RecordedGradient] = []
        self.stepped: set[int] = set()
        self.updates: list[list[RecordedUpdate]] = []
        self.pause_at: float = math.inf
        self._nbytes: list[int] = []

    def paused(self) -> bool:
        """Returns whether there are so many gradients that the clock was stopped."""
        return len(self.gradients) >= self.pause_at

    def until(self, gradients: int, versions: Sequence[int]) -> ArithmeticRecorder:
        """Returns what had been recorded at an earlier moment.

        Args:
          gradients: how many gradients had been recorded.
          versions: the versions of the shards.
        """
        found = copy.copy(self)
        found.gradients = self.gradients[:gradients]
        found.stepped = {number for number in self.stepped if number < gradients}
        found.updates = [u[:v] for u, v in zip(self.updates, versions, strict=True)]
        return found

    def replacing(
        self,
        rules: Mapping[optax.GradientTransformation, optax.GradientTransformation],
        loss: LossFn,
    ) -> ArithmeticRecorder | None:
        """Returns the same record with other rules, in the place of these, and another loss.

        Returns:
          None if there is a rule that is not among those.
        """
        if not {self.rule, *self.local_rules} <= rules.keys():
            return None
        found = copy.copy(self)
        found.rule, found.local_rules = rules[self.rule], {rules[r] for r in self.local_rules}
        found.loss = loss
        return found

    def params(self, nbytes: Sequence[int]) -> tuple[AbstractParams, ...]:
        """Returns the initial slices, given their sizes in bytes."""
        self.updates = [[] for _ in nbytes]
        self._nbytes = list(nbytes)
        return tuple(AbstractParams(size, shard, 0) for shard, size in enumerate(nbytes))

    def gradient(
        self, replica: int, params: tuple[AbstractParams, ...], batch: AbstractBatch
    ) -> tuple[AbstractLoss, tuple[AbstractGradient, ...]]:
        """Records that a replica computes a gradient.

        Raises:
          DependsOnValues: it is not the gradient of one of the replica's own mini-batches.
        """
        if not isinstance(batch, AbstractBatch) or batch.replica != replica:
            raise DependsOnValues("a replica makes mini-batches in a way of its own")
        number = len(self.gradients)
        versions = tuple([slice_.version for slice_ in params])
        life = current.caller.incarnation
        self.gradients.append(
            RecordedGradient(replica, batch.replicas, batch.step, versions, params[0].after, life)
        )
        if number + 1 >= self.pause_at:
            self.clock.stop()
        numbers = (number,)
        pieces = tuple([AbstractGradient(nbytes, numbers) for nbytes in self._nbytes])
        return AbstractLoss(number), pieces

    def step_locally(
        self, params: tuple[AbstractParams, ...], gradient: tuple[AbstractGradient, ...]
    ) -> tuple[AbstractParams, ...]:
        """Records that a replica applies a gradient to its own parameters."""
        (number,) = gradient[0].gradients
        self.stepped.add(number)
        return tuple([AbstractParams(p.nbytes, p.shard, p.version, number) for p in params])

    def apply(
        self,
        params: AbstractParams,
        state: AbstractState,
        gradient: AbstractGradient,
        examples: int,
    ) -> tuple[AbstractParams, AbstractState]:
        """Records that a shard applies an update to its slice; see `ServerRule.apply`.

        The two copies of a shard apply the same updates, of which one is recorded.

        Raises:
          DependsOnValues: the shard was restored from a checkpoint, and applies another update in
            the place of one that it has lost.
        """
        updates, version = self.updates[params.shard], params.version
        if version == len(updates):
            updates.append((gradient.gradients, gradient.mean, self.clock.now_s, examples))
        elif updates[version][0] != gradient.gradients:
            raise DependsOnValues(f"shard/{params.shard} goes back to a checkpoint")
        return AbstractParams(params.nbytes, params.shard, version + 1), state


@final
class AbstractRule:
    """Stands for a `ServerRule`, and records the updates.

    Args:
      recorder: records them.
      rule: the optax rule.
      state_nbytes: the size of the rule's state on each shard, in bytes.
    """

    def __init__(
        self,
        recorder: ArithmeticRecorder,
        rule: optax.GradientTransformation,
        state_nbytes: Sequence[int],
    ) -> None:
        recorder.rule = self.rule = rule
        self.apply, self._state_nbytes = recorder.apply, state_nbytes

    def init(self, params: AbstractParams) -> AbstractState:
        """Returns the state of the rule."""
        return AbstractState(self._state_nbytes[params.shard])

    def compile_for(self, params: AbstractParams, state: AbstractState) -> None:
        """Does nothing."""


@final
class AbstractLocalOptimizer:
    """Stands for a `LocalOptimizer`, and records the local steps.

    Args:
      recorder: records them.
      rule: the optax rule.

    Attributes:
      state: nothing.
    """

    def __init__(self, recorder: ArithmeticRecorder, rule: optax.GradientTransformation) -> None:
        recorder.local_rules.add(rule)
        self.step: Callable[..., Any] = recorder.step_locally
        self.state: Any = None


class AbstractState(NamedTuple):
    """Stands for a `ServerState`, of which only the size is known.

    Attributes:
      nbytes: its size, in bytes.
      rule: nothing.
      refused: none, since pushes are refused for their values.
    """

    nbytes: int
    rule: tuple[Any, ...] = ()
    refused: tuple[int, int] = (0, 0)


@final
class AbstractGradientFn:
    """Stands for the `GradientFn` of a replica, and records the gradients.

    Args:
      recorder: records them.
      replica: the number of the replica.
      program: see `GradientFn.program`.
      types: the shapes and dtypes of the leaves of a mini-batch.
      lower: lowers the real gradient function, for runs whose durations are computed from costs.
    """

    def __init__(
        self,
        recorder: ArithmeticRecorder,
        replica: int,
        program: Any,
        types: tuple[Any, ...],
        lower: Callable[[], jax.stages.Lowered],
    ) -> None:
        self._recorder, self._replica, self._types, self._lower = recorder, replica, types, lower
        self.program = program

    def __call__(self, params: Any, batch: AbstractBatch) -> Any:
        return self._recorder.gradient(self._replica, params, batch)

    def work(self, params: Any, batch: AbstractBatch) -> tuple[Any, ...]:
        """Returns the same for all mini-batches, whose sizes are equal."""
        return self._types

    def lower(self, params: Any, batch: AbstractBatch) -> jax.stages.Lowered:
        """Lowers the real gradient function."""
        return self._lower()


def is_abstract(slices: Any) -> bool:
    """Returns whether slices have no values."""
    return isinstance(slices[0], AbstractSlice)


def plus(a: Slices, b: Slices) -> Any:
    """Returns the sum of abstract gradients, a slice for each shard."""
    pairs: Any = zip(a, b, strict=True)
    return tuple(AbstractGradient(x.nbytes, x.gradients + y.gradients) for x, y in pairs)


def mean(gradients: Sequence[Any]) -> Any:
    """Returns the mean of slices of abstract gradients."""
    numbers = tuple(number for gradient in gradients for number in gradient.gradients)
    return AbstractGradient(gradients[0].nbytes, numbers, mean=True)
