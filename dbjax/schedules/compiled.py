"""The arithmetic of a schedule as one compiled program, which runs in chunks of turns.

A shard keeps its latest versions in a ring, an array [versions, ...] for each piece: a gradient
reads the version at which it was computed, and an update writes the next one. Layout decides the
speed: XLA updates such arrays in place, but would copy one array of all parameters in every turn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, final

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dbjax.checkpoint.compiled import CompiledState, PendingPush
from dbjax.parameter_server.abstract import DependsOnValues, unless_recordable
from dbjax.parameter_server.gradient_fn import compiled_gradient
from dbjax.parameter_server.gradient_sums import add
from dbjax.parameter_server.optimizer import (
    ServerState,
    checked_trees,
    compiled_local,
    server_rule,
)
from dbjax.parameter_server.partition import Partition, compiled_split, partition_params
from dbjax.schedules.hoisting import Hoisted
from dbjax.schedules.plan import Plan, Planner
from dbjax.schedules.recording import Recorded
from dbjax.schedules.schedule import Schedule
from dbjax.schedules.turns import Turns
from dbjax.task import Task
from dbjax.types import Batch, Keyed, Params, Slices

Rule: TypeAlias = optax.GradientTransformation
_UNROLLED = 4  # the gradients of a push; if there are more, the program has a loop


class Carry(NamedTuple):
    """What the program keeps from turn to turn.

    Attributes:
      params: the current slice of every shard.
      states: the state of every shard's rule.
      ring: the latest versions of every slice, arrays [versions, ...].
      pending: pushes that not all shards have applied, arrays [pushes, ...]; None: there are none.
      own: the parameters of replicas that take local steps, arrays [replicas, ...]; None: no
        replica needs them in a later turn.
      local: the states of the replicas' local rule, arrays [replicas, ...]; None: there are none.
    """

    params: Slices
    states: tuple[ServerState, ...]
    ring: Slices
    pending: Slices | None
    own: Slices | None
    local: Any


class Traits(NamedTuple):
    """What a program needs for a schedule; without it, it is smaller and faster.

    Attributes:
      size: the largest number of gradients in a push.
      mean: whether a push carries their mean.
      pending: how many pushes must be kept until all shards have applied them.
      own: whether replicas compute gradients at parameters of their own.
      kept: whether they need them in a later turn.
      local: whether the local rule has a state.
    """

    size: int
    mean: bool
    pending: int
    own: bool
    kept: bool
    local: bool


class _Rules(NamedTuple):
    """The rule of the shards and the rule of local steps, as functions of their constants.

    Attributes:
      inits: the server rule's `init`, for each slice.
      applies: the server rule's `apply`, for each slice.
      local: the local rule's `init` and its step; empty: there are no local steps.
    """

    inits: tuple[Hoisted, ...]
    applies: tuple[Hoisted, ...]
    local: tuple[Hoisted, ...]

    @property
    def constants(self) -> Any:
        """The constants of `applies` and of `local`."""
        return tuple([one.constants for one in functions] for functions in self[1:])


@functools.lru_cache(maxsize=16)
def _hoisted(
    rule: Rule, local_rule: Rule, partition: Partition, shapes: Any, steps: bool
) -> _Rules:
    """Traces the two rules.

    Args:
      rule: the rule of the shards.
      local_rule: the rule of local steps.
      partition: the partition of the parameters into slices.
      shapes: for each slice, its items; only their shapes and dtypes are used.
      steps: whether replicas take local steps.
    """
    like = tuple(map(dict, shapes))
    with unless_recordable():
        return _traced(rule, local_rule, partition, like, steps)


def _traced(
    rule: Rule, local_rule: Rule, partition: Partition, like: Slices, steps: bool
) -> _Rules:
    server = server_rule(rule, checked_trees(rule, partition, like))
    inits = tuple(Hoisted(server.init, slice_) for slice_ in like)
    states = [jax.eval_shape(server.init, slice_) for slice_ in like]
    if any(jnp.issubdtype(leaf.dtype, jax.dtypes.extended) for leaf in jax.tree.leaves(states)):
        raise DependsOnValues("the state of its rule holds a random key")
    applies = tuple(
        Hoisted(server.apply, slice_, state, slice_, np.int32(1))
        for slice_, state in zip(like, states, strict=True)
    )
    if not steps:
        return _Rules(inits, applies, ())
    init, step = compiled_local(local_rule, partition)
    local = Hoisted(init, like), Hoisted(step, like, jax.eval_shape(init, like), like)
    return _Rules(inits, applies, local)


@final
class CompiledArithmetic:
    """The arithmetic of a schedule.

    Args:
      task: the task that is trained.
      recorded: the recorded arithmetic.
      turns: the turns of its schedule.
      planner: plans these turns for this task; None: a new one.

    Attributes:
      partition: the partition of the parameters into slices.
      planner: plans the turns.
      constants: the constants of its rules, which `run_many` must be given.
    """

    def __init__(
        self, task: Task, recorded: Recorded, turns: Turns, planner: Planner | None = None
    ) -> None:
        schedule, _, rule, local_rule, loss, replicas = recorded
        self.partition = partition_params(task.shapes, schedule.shards)
        self.planner = planner or Planner(task, schedule, turns, replicas)
        like = jax.eval_shape(self.partition.split, task.shapes)
        steps = bool(np.any(schedule.stepped))
        shapes = tuple(tuple(slice_.items()) for slice_ in like)
        self._rules = _hoisted(rule, local_rule, self.partition, shapes, steps)
        self.constants = self._rules.constants
        self._init, _ = compiled_local(local_rule, self.partition)
        local = jax.eval_shape(self._init, like)
        traits = self._traits = _traits(schedule, turns, self.planner.size, local)
        self._ring, self._replicas, self._like = turns.ring, replicas, like
        self._schedule, self._turns = schedule, turns
        gradient_fn: Any = compiled_gradient(loss, self.partition)
        self._program = gradient_fn, self._rules.applies, self._rules.local, traits

    def alike(self, other: CompiledArithmetic) -> bool:
        """Returns whether the arithmetic of another one differs in its `constants` only."""
        return self._program == other._program

    @functools.cached_property
    def nbytes(self) -> int:
        """The size of the carry, in bytes."""
        leaves = jax.tree.leaves(jax.eval_shape(self.begin_with, self._like))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    def adopt(self, carry: Carry) -> Carry:
        """Returns a carry of another schedule, whose turns so far are the same, for this one.

        The rings must have the same sizes.
        """
        traits, like = self._traits, carry.params
        local = jax.eval_shape(self._init, like)
        own = carry.own if carry.own is not None else _zeros(self._replicas, like)
        states = carry.local if carry.local is not None else _zeros(self._replicas, local)
        return carry._replace(
            pending=_zeros(traits.pending, like) if traits.pending else None,
            own=own if traits.kept else None,
            local=states if traits.local else None,
        )

    def begin(self, params: Params) -> Carry:
        """Returns the carry before the first turn."""
        return self.begin_with(_copy(compiled_split(self.partition)(params)))

    def begin_with(self, slices: Slices) -> Carry:
        """Returns the carry before the first turn, given the initial slices, which it takes."""
        traits, local = self._traits, jax.eval_shape(self._init, slices)
        return Carry(
            slices,
            self._states(slices),
            tuple(map(_ring, slices, self._ring)),
            _zeros(traits.pending, slices) if traits.pending else None,
            _zeros(self._replicas, slices) if traits.kept else None,
            _zeros(self._replicas, local) if traits.local else None,
        )

    def _states(self, slices: Slices) -> tuple[ServerState, ...]:
        inits = zip(self._rules.inits, slices, strict=True)
        return tuple(_compiled_init(init)(init.constants, slice_) for init, slice_ in inits)

    def save(self, carry: Carry, turns: int, versions: Sequence[int]) -> dict[str, Any]:
        """Returns copies of what a `CompiledState` holds of a carry.

        Args:
          carry: the carry.
          turns: after how many turns it is.
          versions: the version of each shard.
        """
        rings = zip(carry.ring, versions, self._ring, strict=True)
        return {
            "params": _copy(carry.params),
            "rules": _copy(carry.states),
            "ring": tuple(_taken(kept, _kept_versions(v, size) % size) for kept, v, size in rings),
            "pending": tuple(
                PendingPush(*key, _at(carry.pending, place))
                for key, place in self._waiting(turns).items()
            ),
            "own": _copy(carry.own),
            "local": _copy(carry.local),
        }

    def load(self, state: CompiledState, turns: int) -> Carry:
        """Returns the carry that was saved in a run of the same program.

        Args:
          state: the state.
          turns: after how many turns it was saved.

        Raises:
          DependsOnValues: a later gradient needs a version that was not saved.
        """
        later = self._turns.computed[self._schedule.push] >= turns
        for s, saved in enumerate(state.ring):
            oldest = state.versions[s] + 1 - len(jax.tree.leaves(saved)[0])
            if np.any(self._schedule.version[later & ~self._schedule.own, s] < oldest):
                raise DependsOnValues("the checkpoint lacks old versions that are still needed")
        carry = self.begin_with(_copy(state.params))
        rings = zip(carry.ring, state.ring, state.versions, self._ring, strict=True)
        pending, waiting = carry.pending, self._waiting(turns)
        for push in state.pending:
            place = waiting.get((push.replica, push.life, push.step))
            if place is not None:  # otherwise the replica failed before other shards had it
                pending = _set(pending, place, push.gradient)
        made = self.adopt(carry._replace(own=_copy(state.own), local=_copy(state.local)))
        return made._replace(
            states=_copy(state.rules),
            ring=tuple(_restored(kept, saved, v, size) for kept, saved, v, size in rings),
            pending=pending,
        )

    def _waiting(self, turns: int) -> dict[tuple[int, int, int], int]:
        """Returns where the pushes wait that some shards have not applied after so many turns.

        They are named by the replica, the life and the step of their first gradients.
        """
        schedule, found = self._schedule, {}
        last = self._turns.needed_until(schedule)
        for push in np.flatnonzero((self._turns.computed < turns) & (last >= turns)):
            first = schedule.first[push]
            name = schedule.replica[first], schedule.life[first], schedule.step[first]
            replica, life, step = map(int, name)
            found[replica, life, step] = int(self._turns.computed[push] % self._turns.pending)
        return found

    def run(self, carry: Carry, plan: Plan, count: int) -> tuple[Carry, jax.Array]:
        """Runs the first `count` turns of a plan. The carry is donated.

        Returns:
          The carry, and the losses of the gradients, [turns, n].
        """
        run = _compiled_chunk(*self._program)
        found: tuple[Carry, jax.Array] = run(carry, plan, self.planner.data, count, self.constants)
        return found

    def run_many(
        self, carry: Carry, plan: Plan, count: int, constants: Any
    ) -> tuple[Carry, jax.Array]:
        """Does what `run` does for many trials at once.

        Args:
          carry: their carries, stacked; it is donated.
          plan: the plan of all trials.
          count: the number of turns.
          constants: the constants of each trial's rules, stacked.

        Returns:
          The carries, and the losses of the gradients, [trials, turns, n].
        """
        run = _many_at_once(*self._program)
        found: tuple[Carry, jax.Array] = run(carry, plan, self.planner.data, count, constants)
        return found

    def has(self, versions: Sequence[int], current: Sequence[int]) -> bool:
        """Returns whether the rings still have these versions, given the current ones."""
        of_shards = zip(versions, current, self._ring, strict=True)
        return all(now + 2 - size <= version <= now for version, now, size in of_shards)

    def slices(self, carry: Carry, versions: Sequence[int]) -> Slices:
        """Returns the slices at these versions, which must still be in the ring."""
        return tuple(
            jax.tree.map(lambda a, at=version % size: a[at], kept)
            for kept, version, size in zip(carry.ring, versions, self._ring, strict=True)
        )


@functools.lru_cache(maxsize=64)
def _compiled_init(init: Hoisted) -> Any:
    """Compiles (constants, slice) -> state of the rule."""
    return jax.jit(init.__call__, keep_unused=True)


def _traits(schedule: Schedule, turns: Turns, size: int, local: Any) -> Traits:
    """Finds what the program of a schedule needs."""
    starts = schedule.first[:-1]
    return Traits(
        size,
        schedule.mean and size > 1,
        turns.pending,
        bool(np.any(schedule.own)),
        bool(np.any(schedule.own[starts])),
        bool(np.any(schedule.stepped)) and bool(jax.tree.leaves(local)),
    )


def _copy(arrays: Any) -> Any:
    """Returns copies: a carry is donated to the next chunk.

    They have the types that the program returns, which are never weak, so that it is compiled once.
    """
    return jax.tree.map(lambda a: jnp.array(a, a.dtype, copy=True), arrays)


def _kept_versions(version: int, size: int) -> Any:
    """Returns the versions in a ring besides the one that is written next, the oldest first."""
    return np.arange(max(0, version + 2 - size), version + 1)


def _taken(arrays: Any, places: Any) -> Any:
    return jax.tree.map(lambda a: a[places], arrays)


def _restored(ring: Any, saved: Any, version: int, size: int) -> Any:
    """Returns a ring with the latest of the saved versions in their places."""

    def places(a: Any, s: Any) -> Any:
        versions = _kept_versions(version, size)[-len(s) :]
        return a.at[versions % size].set(jnp.asarray(s)[-len(versions) :])

    return jax.tree.map(places, ring, saved)


def _ring(slice_: Any, size: int) -> Any:
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (size, *a.shape)).copy(), slice_)


def _zeros(count: int, like: Any) -> Any:
    return jax.tree.map(lambda a: jnp.zeros((count, *a.shape), a.dtype), like)


def _at(arrays: Any, index: Any) -> Any:
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False), arrays)


def _set(arrays: Any, index: Any, values: Any) -> Any:
    return jax.tree.map(
        lambda a, v: jax.lax.dynamic_update_index_in_dim(a, v, index, 0), arrays, values
    )


def _where(condition: Any, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def _if(condition: Any, function: Callable[..., Any], *args: Any, keep: Any = None) -> Any:
    """Returns `function(*args)`, or `keep` if the condition is false; None: zeros.

    XLA does not fuse what is inside with what is outside. So the function is compiled as it is by
    itself, and gives the same bytes, which it would not if its sums were fused with other loops.
    """
    like = jax.eval_shape(function, *args)
    other = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like) if keep is None else keep
    return jax.lax.cond(condition, lambda *args: function(*args), lambda *_: other, *args)


class _Given(NamedTuple):
    """What a program is given besides its carry and its plan.

    Attributes:
      data: the examples; None: the plan has the mini-batches.
      rules: the constants of the server rule of each shard.
      local: the constants of the rule of local steps, of its `init` and of its step.
    """

    data: Any
    rules: Any
    local: Any


@functools.lru_cache(maxsize=16)
def _many_at_once(*functions: Any) -> Any:
    """Compiles the chunk of many trials, which differ in the carry and the constants."""
    one = _chunk(*functions)
    return jax.jit(jax.vmap(one, in_axes=(0, None, None, None, 0)), donate_argnums=0)


@functools.lru_cache(maxsize=16)
def _compiled_chunk(*functions: Any) -> Any:
    """Compiles the chunk of one trial."""
    return jax.jit(_chunk(*functions), donate_argnums=0)


def _chunk(
    gradient_fn: Callable[..., Any],
    applies: tuple[Hoisted, ...],
    local_rule: tuple[Hoisted, ...],
    traits: Traits,
) -> Any:
    """Returns (carry, plan, data, count, constants of rules) -> (carry, losses)."""

    def batch_of(given: Any, data: Any) -> Batch:
        if data is None:
            return given
        rows = given.batch if isinstance(given, Keyed) else given
        batch = jax.tree.map(lambda a: a.at[rows].get(mode="promise_in_bounds"), data)
        return Keyed(batch, given.numbers) if isinstance(given, Keyed) else batch

    class Replica(NamedTuple):
        """A replica while it computes a push."""

        own: Any
        local: Any
        total: Any

    def gradient(ring: Slices, replica: Replica, x: Plan, given: _Given, first: bool) -> Any:
        """Computes one gradient of a push, and adds it to the others."""
        slices: Slices = tuple(_at(kept, x.read[s]) for s, kept in enumerate(ring))
        if traits.own:
            slices = _where(x.own, replica.own, slices)
        batch = batch_of(x.batch, given.data)
        loss, found = _if(x.computes, gradient_fn, slices, batch)
        own, local = replica.own, replica.local
        if traits.own or traits.local:
            init_local, step = map(functools.partial, local_rule, given.local)
            if not traits.local:
                local = init_local(slices)
            else:
                local = _if(
                    x.fresh, lambda slices, _: init_local(slices), slices, local, keep=local
                )
            keep = replica.own, local
            own, after = _if(x.stepped, step, slices, local, found, keep=keep)
            local = after if traits.local else None
        total = found if first else _if(x.computes, add, replica.total, found, keep=replica.total)
        return Replica(own, local, total), loss

    def push(carry: Carry, x: Plan, given: _Given) -> tuple[Replica, jax.Array]:
        """Computes the gradients of a push."""
        own = _at(carry.own, x.replica) if traits.kept else carry.params
        local = _at(carry.local, x.replica) if traits.local else None
        replica = Replica(own, local, None)
        each = x._replace(keep=0, take=0, applies=0, write=0, examples=0, replica=0)
        of = lambda i: Plan(*(v if isinstance(v, int) else _at(v, i) for v in each))  # noqa: E731
        replica, loss = gradient(carry.ring, replica, of(0), given, True)
        losses = [loss]
        if traits.size <= _UNROLLED:
            for i in range(1, traits.size):
                replica, loss = gradient(carry.ring, replica, of(i), given, False)
                losses.append(loss)
            return replica, jnp.stack(losses)

        def further(i: Any, state: tuple[Replica, jax.Array]) -> tuple[Replica, jax.Array]:
            replica, losses = state
            replica, loss = gradient(carry.ring, replica, of(i), given, False)
            return replica, losses.at[i].set(loss)

        every = jnp.zeros(traits.size, loss.dtype).at[0].set(loss)
        found: tuple[Replica, jax.Array] = jax.lax.fori_loop(
            1, traits.size, further, (replica, every)
        )
        return found

    def turn(carry: Carry, x: Plan, given: _Given) -> tuple[Carry, jax.Array]:
        replica, losses = push(carry, x, given)
        total = replica.total
        if traits.mean:
            total = jax.tree.map(lambda a: a / traits.size, total)
        pending = carry.pending
        if traits.pending:
            pending = _set(pending, x.keep, total)
        params, states, ring = [], [], []
        for s, (before, state, kept) in enumerate(
            zip(carry.params, carry.states, carry.ring, strict=True)
        ):
            mine = _at(pending[s], x.take[s]) if pending is not None else total[s]
            apply = functools.partial(applies[s], given.rules[s])
            new = _if(x.applies[s], apply, before, state, mine, x.examples[s], keep=(before, state))
            params.append(new[0])
            states.append(new[1])
            ring.append(_set(kept, x.write[s], new[0]))
        own = _set(carry.own, x.replica, replica.own) if traits.kept else None
        local = _set(carry.local, x.replica, replica.local) if traits.local else None
        after = Carry(tuple(params), tuple(states), tuple(ring), pending, own, local)
        return after, losses

    def chunk(
        carry: Carry, plan: Plan, data: Any, count: Any, constants: Any
    ) -> tuple[Carry, jax.Array]:
        given = _Given(data, *constants)
        shape = plan.computes.shape
        first = jax.tree.map(lambda a: a[0], plan)
        loss = jax.eval_shape(lambda c, x, g: turn(c, x, g)[1], carry, first, given)

        def body(i: Any, state: tuple[Carry, jax.Array]) -> tuple[Carry, jax.Array]:
            carry, losses = state
            carry, loss = turn(carry, _at(plan, i), given)
            return carry, losses.at[i].set(loss)

        losses = jnp.zeros(shape, loss.dtype)
        found: tuple[Carry, jax.Array] = jax.lax.fori_loop(0, count, body, (carry, losses))
        return found

    return chunk
