"""Listens at the seams: what a run's shards are asked, answer, and do."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

import dbjax.parameter_server.client
from dbjax.algorithms.sandblaster.replica import Replica
from dbjax.parameter_server import Shard, Snapshot
from dbjax.parameter_server.vector_shard import VectorShard
from dbjax.runtime.context import current
from dbjax.runtime.virtual.simulator import Simulator
from tests.simulation.book import Book, Called, Violation
from tests.simulation.case import Case
from tests.simulation.problems import bowl_gradient

MOST_EVENTS = 60_000


class Ears:
    """A handle of a shard that notes what passes.

    Args:
      draws: to send some pushes twice, at once or before the next call of who pushed; or None.
    """

    def __init__(self, handle: Any, shard: int, book: Book, draws: random.Random | None) -> None:
        self._handle, self._shard, self._book, self._draws = handle, shard, book, draws
        self._late: dict[str, tuple[Any, ...]] = {}
        self.name = handle.name

    def call(self, method: Callable[..., Any], *args: Any) -> Any:
        self._repeat(*self._late.pop(current.caller.label, ()))
        future = self._call(method, *args)
        if method.__name__ == "push" and self._draws is not None:
            when = self._draws.choice(["at once", "late", "never"])
            if when == "at once":
                self._repeat(method, *args)
            elif when == "late":
                self._late[current.caller.label] = method, *args
        return future

    def _repeat(self, *call: Any) -> None:
        """Nobody looks at the answer."""
        if call:
            self._book.repeated += 1
            answer = self._handle.call(*call)
            answer.on_done(answer.see)

    def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        caller, copies = current.caller, self._book.copies[self._shard]
        called = Called(
            self._shard,
            caller.node.name,
            method.__name__,
            args,
            [copies.lost],
        )
        self._book.calls.append(called)
        future = self._handle.call(method, *args)
        future.on_done(lambda: self._answered(called, future))
        return future

    def up(self) -> Any:
        return self._handle.up()

    def _answered(self, called: Called, future: Any) -> None:
        if future.error() is None:
            called.reply, called.answered = future._value, True
            self._book.answers.append(called)
            called.lost.append(self._book.copies[self._shard].lost)
            if isinstance(called.reply, Snapshot):
                self._book.keep(called.reply)


@contextlib.contextmanager
def listening(book: Book, case: Case) -> Iterator[None]:
    """Runs in the block are noted."""
    patches = [
        mock.patch.object(dbjax.parameter_server.client, "serve_replicated", _serving(book, case)),
        mock.patch.object(Simulator, "at", _counting(book)),
        *(
            mock.patch.object(kind, name, made(book, getattr(kind, name)))
            for kind, name, made in (
                (Shard, "__init__", _born),
                (Shard, "push", _pushing),
                (Shard, "state", _stating),
                (Shard, "restore", _restoring),
                (Shard, "fetch", _serving_method),
                (VectorShard, "restore", _restoring_vectors),
                (VectorShard, "fetch", _serving_method),
                (VectorShard, "accumulate", _serving_method),
                (VectorShard, "close", _closing),
                (Replica, "process_portion", _processing),
            )
        ),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def _serving(book: Book, case: Case) -> Callable[..., Any]:
    right = dbjax.parameter_server.client.serve_replicated
    draws = case.draws("repeats") if case.repeats else None

    def serve_replicated(runtime: Any, name: str, *args: Any) -> Ears:
        return Ears(right(runtime, name, *args), int(name.split("/")[1]), book, draws)

    return serve_replicated


def _counting(book: Book) -> Callable[..., Any]:
    right = Simulator.at

    def at(self: Any, *args: Any, **kwargs: Any) -> None:
        book.events += 1
        if book.events > MOST_EVENTS:
            raise Violation(f"no progress: {MOST_EVENTS} events, and it is {self.now_s:g} s")
        right(self, *args, **kwargs)

    return at


def _note_history(book: Book, shard: Any) -> None:
    book.histories[id(shard._snapshot)] = (shard._snapshot, shard.history)


def _given(book: Book, shard: Any) -> None:
    found = book.of(shard._node.name)
    if found is not None:
        book.copies[found].given(shard._node.name)


def _born(book: Book, right: Callable[..., Any]) -> Callable[..., Any]:
    def init(self: Any, *args: Any) -> None:
        right(self, *args)
        self.history = ()
        _note_history(book, self)

    return init


def _pushing(book: Book, right: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(right)
    def push(self: Any, push: Any) -> Any:
        before = self._snapshot
        reply = right(self, push)
        if self._snapshot is not before:
            self.history = (*self.history, (push.replica, push.sequence))
            _note_history(book, self)
        _given(book, self)
        return reply

    return push


def _serving_method(book: Book, right: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(right)
    def served(self: Any, *args: Any) -> Any:
        _given(book, self)
        return right(self, *args)

    return served


def _stating(book: Book, right: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(right)
    def state(self: Any) -> Any:
        found = right(self)
        book.histories[id(found.snapshot)] = (found.snapshot, self.history)
        return found

    return state


def _restoring(book: Book, right: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(right)
    def restore(self: Any, state: Any, *, checkpoint: bool = False) -> None:
        right(self, state, checkpoint=checkpoint)
        self.history = book.history(state.snapshot)
        if not checkpoint:
            _given(book, self)

    return restore


def _restoring_vectors(book: Book, right: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(right)
    def restore(self: Any, state: Any, *, checkpoint: bool = False) -> None:
        right(self, state, checkpoint=checkpoint)
        if not checkpoint:
            _given(book, self)

    return restore


def _processing(book: Book, right: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(right)
    def process_portion(self: Any, evaluation: int, total: int, portion: int) -> Any:
        book.portions.setdefault(evaluation, set()).add(portion)
        return right(self, evaluation, total, portion)

    return process_portion


def _closing(book: Book, right: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(right)
    def close(self: Any, number: int, evaluation: int, scales: Any) -> Any:
        summed = bool(self._sums)
        reply = right(self, number, evaluation, scales)
        if summed:
            book.closed.add(evaluation)
            _check_gradient(book, self, evaluation)
        return reply

    return close


def _check_gradient(book: Book, shard: Any, evaluation: int) -> None:
    """Every portion counts once: the gradient is that of the whole batch."""
    found, params = shard._vectors["gradient"], shard._vectors["params"]
    index, portions = book.of(shard._node.name), book.portions[evaluation]
    expected = bowl_gradient(len(book.copies), index, params, portions)
    for name, value in expected.items():
        if not np.allclose(found[name], value, rtol=1e-4, atol=1e-4):
            book.faults.append(
                f"{shard._node.name}, evaluation {evaluation}: gradient {found[name]}, of "
                f"{len(portions)} portions {value}"
            )
