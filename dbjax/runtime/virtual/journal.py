"""Journals of coroutines, from which a coroutine can be restored to the wait where it stood.

Python cannot save a coroutine that waits. But what a coroutine does depends only on the arguments
with which it was made, and on what it was given since then: futures, the order in which they were
settled, and times. A journal records all of this in memory, from the beginning of the coroutine or
from the last call of `Node.save_progress`. To restore a coroutine, one makes it again from the
saved progress, and gives it the same again; then it stands where the old one stood
(`JournaledCoroutine.fast_forward`).

A journal records only the calls that the coroutine makes itself. It does not record the calls made
inside those, such as the ones of a `FailoverClient` to the copies of a service, nor those made in
callbacks: their state is in the objects that a checkpoint holds.
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
# One of these kinds, and its value: the future that was given, the value that was said, the error
# that was raised, or the future that was settled. A restored journal also has the outcome of the
# latter.
Entry = tuple[Any, ...]


@final
class Noted:
    """The callback by which a journal notes that a future was settled.

    It runs before all other callbacks of the future, so that the order is recorded correctly.
    """

    __slots__ = ("future", "journal")

    def __init__(self, journal: JournaledCoroutine, future: Future[Any]) -> None:
        self.journal: JournaledCoroutine | None = journal
        self.future = future

    def __call__(self) -> None:
        if self.journal is not None:
            self.journal.settled(self.future)


@final
class JournaledCoroutine:
    """A coroutine that keeps a journal. It is driven like any coroutine, by `send` and `close`.

    Args:
      caller: the process or the service whose coroutine it is.
      coroutine: the coroutine itself.
      call: the call that it serves; None: it is the coroutine of a process.
      attributes: the attributes that its service had when the call began.

    Attributes:
      call: see above.
      attributes: see above.
      kept: the progress that it saved last; None: it has saved nothing yet.
      entries: what it was given since then, in order.
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
        self._noted: dict[int, Noted] = {}  # for the futures that were not settled when given
        self._left: deque[Entry] | None = None  # the entries still to repeat; None: it is restored
        self._unkept = False  # it was made from saved progress, and has not saved it again yet

    def send(self, value: None) -> Any:
        """Resumes the coroutine, whose calls are recorded meanwhile.

        Returns:
          The future for which it waits next.
        """
        caller = self._caller
        before, caller.journal = caller.journal, self
        try:
            return self._coroutine.send(value)
        finally:
            caller.journal = before

    def close(self) -> None:
        """Ends the coroutine where it stands."""
        self._coroutine.close()

    # The coroutine calls the following methods, by way of its caller's `journal`.

    def keep(self, state: Any) -> None:
        """Saves the coroutine's progress, and forgets what it was given before.

        Raises:
          ReplayError: the coroutine is being restored, and did not save progress here before.
        """
        if self._unkept:
            self._unkept = False
            return
        if self._left is not None:
            raise ReplayError(f"{self._caller.label} saves progress where it did not before")
        self.kept, self.entries = state, []
        before, self._noted = self._noted, {}
        for future in _unsettled(state):
            self._watch(future, before.pop(id(future), None))
        for noted in before.values():
            noted.journal = None

    def given(self, ask: Callable[..., Future[Any]], *args: Any, **kwargs: Any) -> Future[Any]:
        """Calls `ask(*args, **kwargs)`, and records and returns the future that it returns.

        While the coroutine is being restored, it returns the recorded future instead, or raises the
        recorded error, and calls nothing.

        Raises:
          ReplayError: the coroutine is being restored, and did not call anything here before.
        """
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
        """Records and returns a value; returns the recorded one while the coroutine is restored.

        Raises:
          ReplayError: the coroutine is being restored, and did not ask for a value here before.
        """
        if self._left is not None:
            return self._next(SAID)
        self.entries.append((SAID, value))
        return value

    def settled(self, future: Future[Any]) -> None:
        """Records that a future was settled."""
        if self._left is None:
            self.entries.append((SETTLED, future))

    # Checkpoints call the following methods.

    def watched(self) -> Iterator[Future[Any]]:
        """Returns the futures whose settling the journal will record."""
        return (noted.future for noted in self._noted.values())

    def fast_forward(
        self, coroutine: Coroutine[Any, Any, Any], resume: Callable[[], object]
    ) -> None:
        """Brings a new coroutine to the wait where the old one stood.

        The futures that the journal says were settled must be unsettled now, and nobody may wait
        for them; this method settles them in the recorded order.

        Args:
          coroutine: the new coroutine, made with the same arguments.
          resume: runs the coroutine up to its next wait.

        Raises:
          ReplayError: the coroutine calls something else than before, so it is not the same
            program.
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
        """Takes the next entry, which must be of one of these kinds; raises it if it is an error.

        Raises:
          ReplayError: the next entry is of another kind, or there is none.
        """
        if self._unkept:
            raise ReplayError(f"{self._caller.label} calls something before it saves progress")
        entry = self._left.popleft() if self._left else (None,)
        if entry[0] == RAISED and RAISED in kinds:
            raise entry[1]
        if entry[0] not in kinds:
            raise ReplayError(
                f"{self._caller.label} asks for a {kinds[0]!r} entry where its journal has "
                f"{entry[0]!r}: it is not the same program"
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
    """Yields the unsettled futures in a state of containers and dataclasses."""
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
