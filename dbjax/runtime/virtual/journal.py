"""What a coroutine was given, so that it can be brought again to where it stood.

Python cannot save a coroutine that waits. But what one does depends only on what it was made
of and what it was given since: futures, in which order they were settled, times. All this is
written down, in memory, from its beginning, or from where it last said what it knows
(`Node.keep`). A coroutine made anew, of what it kept, and given the same again, stands where
the old one stood: `JournaledCoroutine.fast_forward`.

Only what the coroutine itself asks for is written down. Inside such a question (a `FailoverClient`
calls its copies) and in callbacks nothing is: those live on in the objects that a checkpoint
holds.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, final

from dbjax.errors import ReplayError
from dbjax.runtime.context import Caller
from dbjax.runtime.futures import Future

GIVEN, SAID, RAISED, SETTLED = "given", "said", "raised", "settled"
Entry = tuple[Any, ...]  # one of these, and what it was


@final
class Noted:
    """The first to be called back when a future is settled that was given."""

    __slots__ = ("future", "journal")

    def __init__(self, journal: JournaledCoroutine, future: Future[Any]) -> None:
        self.journal: JournaledCoroutine | None = journal
        self.future = future

    def __call__(self) -> None:
        if self.journal is not None:
            self.journal.settled(self.future)


@final
class JournaledCoroutine:
    """A coroutine, to be driven as one.

    Attributes:
      kept: what it said last that it knows; None: nothing yet.
      call: that it serves, and `attributes` of its service then; None: it is a main.
      entries: what it was given since.
    """

    __slots__ = ("_caller", "_coroutine", "_left", "_noted", "_unkept", "attributes", "call",
                 "entries", "kept")  # fmt: skip

    def __init__(
        self,
        caller: Caller,
        coroutine: Coroutine[Any, Any, Any],
        call: Any = None,
        attributes: dict[str, Any] | None = None,
    ) -> None:
        self._caller, self._coroutine = caller, coroutine
        self.call, self.attributes = call, attributes
        self.kept: Any = None
        self.entries: list[Entry] = []
        self._noted: dict[int, Noted] = {}  # of futures that were unsettled when given
        self._left: deque[Entry] | None = None  # while it is brought again to where it stood
        self._unkept = False  # it was made of what it kept, and has not said so yet

    def send(self, value: None) -> Any:
        caller = self._caller
        before, caller.journal = caller.journal, self
        try:
            return self._coroutine.send(value)
        finally:
            caller.journal = before

    def close(self) -> None:
        self._coroutine.close()

    # Asked by the coroutine.

    def keep(self, state: Any) -> None:
        """What was given before is of no interest any more."""
        if self._unkept:
            self._unkept = False
            return
        if self._left is not None:
            raise ReplayError(f"{self._caller.label} keeps something where it did not before")
        self.kept, self.entries = state, []
        before, self._noted = self._noted, {}
        for future in _unsettled(state):
            self._watch(future, before.pop(id(future), None))
        for noted in before.values():
            noted.journal = None

    def given(self, ask: Callable[..., Future[Any]], *args: Any, **kwargs: Any) -> Future[Any]:
        """The future that `ask` returns; nothing is asked where it was given before."""
        if self._left is not None:
            future: Future[Any] = self._next(GIVEN, RAISED)
            return future
        self._caller.journal = None
        try:
            future = ask(*args, **kwargs)
        except Exception as error:
            self.entries.append((RAISED, error))
            raise
        finally:
            self._caller.journal = self
        self.entries.append((GIVEN, future))
        if not future.done():
            self._watch(future)
        return future

    def said(self, value: Any) -> Any:
        """The value; or the one that was said before."""
        if self._left is not None:
            return self._next(SAID)
        self.entries.append((SAID, value))
        return value

    def settled(self, future: Future[Any]) -> None:
        if self._left is None:
            self.entries.append((SETTLED, future))

    # For a checkpoint.

    def watched(self) -> Iterator[Future[Any]]:
        """Futures whose settling is part of the journal."""
        return (noted.future for noted in self._noted.values())

    def fast_forward(
        self, coroutine: Coroutine[Any, Any, Any], resume: Callable[[], object]
    ) -> None:
        """Brings a new coroutine to where the old one stood.

        The futures of the journal are unsettled, and nobody waits for them.

        Args:
          resume: runs the coroutine up to its next wait.

        Raises:
          ReplayError: it asks for something else: it is not the same program.
        """
        self._coroutine, self._noted = coroutine, {}
        self._unkept = self.kept is not None
        self._left = deque(self.entries)
        for future in _unsettled(self.kept):
            self._watch(future)
        for kind, future, *_ in self.entries:
            if kind == GIVEN and not future.done() and id(future) not in self._noted:
                self._watch(future)
        resume()
        while self._left:
            _settle(*self._next(SETTLED))
        self.entries = [entry[:2] if entry[0] == SETTLED else entry for entry in self.entries]
        self._left = None

    def _watch(self, future: Future[Any], noted: Noted | None = None) -> None:
        if noted is None:
            noted = Noted(self, future)
            future.on_done_first(noted)
        self._noted[id(future)] = noted

    def _next(self, *kinds: str) -> Any:
        """What comes next in the journal."""
        if self._unkept:
            raise ReplayError(f"{self._caller.label} asks for something before it keeps")
        entry = self._left.popleft() if self._left else (None,)
        if entry[0] == RAISED and RAISED in kinds:
            raise entry[1]
        if entry[0] not in kinds:
            raise ReplayError(
                f"{self._caller.label} asks for what was {kinds[0]}, the journal has {entry[0]}"
            )
        return entry[1:] if entry[0] == SETTLED else entry[1]


def _settle(
    future: Future[Any], value: Any, error: BaseException | None, children: tuple[Future[Any], ...]
) -> None:
    if error is not None:
        future.set_error(error, children)
    else:
        future.set_result(value)


def _unsettled(state: Any) -> Iterator[Future[Any]]:
    """Futures in containers and dataclasses."""
    if isinstance(state, Future):
        if not state.done():
            yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _unsettled(value)
    elif isinstance(state, (tuple, list)):
        for value in state:
            yield from _unsettled(value)
    elif dataclasses.is_dataclass(state):
        for field in dataclasses.fields(state):
            yield from _unsettled(getattr(state, field.name))
