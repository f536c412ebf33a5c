"""Replicates a service on two machines: a primary and a backup.

After van Renesse & Schneider 2004, "Chain Replication for Supporting High Throughput and
Availability", with a chain of two. The primary serves every call, forwards it to the backup, and
replies when both have served it. Both copies therefore have everything that was acknowledged. When
the primary fails, the backup becomes the primary, and callers of the failed primary call again.
Services recognise a repeated call (a push by its sequence number). A machine that comes back is
recovering: it receives the state of the other copy, and is the backup from then on.

Differs from the paper: all reads go to the primary, which answers a read only when the backup has
all the updates that the reply shows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal, final

from dbjax.errors import NodeDied
from dbjax.runtime.interface import Future, Node, calling_as, current, ready

Make = Callable[..., Any]


def make_service(node: Node, restored: Any, make: Make, *args: Any) -> Any:
    """Makes a service, and restores its state.

    Args:
      node: the node that the service runs on.
      restored: the service's checkpointed state; None: it starts from its initial state.
      make: (node, *args) -> the service, which has `state` and `restore`.
      *args: further arguments of `make`.
    """
    service = make(node, *args)
    if restored is not None or node.incarnation:
        service.restore(service.state() if restored is None else restored, checkpoint=True)
    return service


@final
class ReplicatedService:
    """One of two copies of a service.

    Args:
      node: the node that this copy runs on.
      restored: the checkpointed state of the service; None: there is none.
      make: (node, *args) -> the service, which has `state` and `restore`, and recognises a
        repeated call; its methods are not coroutines.
      name: the name of the service.
      place: 0 for the copy that is the primary at first, 1 for the other copy.
      peer: the name of the other copy's node.
      *args: further arguments of `make`.
    """

    def __init__(
        self, node: Node, restored: Any, make: Make, name: str, place: int, peer: str, *args: Any
    ) -> None:
        self._node, self._name, self._place, self._peer = node, name, place, peer
        self._caller = current.caller
        self._service = make_service(node, restored, make, *args)
        self._role: Literal["primary", "backup", "recovering"] = "backup" if place else "primary"
        self._in_sync = True  # whether the other copy has been sent everything that this one has
        self._installs = 0
        self._last_forwarded: Future[None] = ready(None)
        self._held_replies: list[Callable[[], object]] | None = None  # while a call is served
        # In real time, other threads settle replies; none of them may see a half-served call.
        self._turn = threading.RLock()
        self._awaiting_peer = False
        self._watching: Future[None] | None = None
        if node.returned:  # after a failure, only the checkpointed state is left
            self._role, self._in_sync = "recovering", False
            _ = self._tell(ReplicatedService.peer_recovering, self._place, then=self._ask_for_state)

    # Called by clients of the service.

    def serve(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Serves a call from a client; the reply is deferred until the backup has served it, too.

        The reply fails with NodeDied if this copy is not, or is no longer, the primary.

        Args:
          method: the name of the service's method.
          args: the positional arguments of the call.
          kwargs: the keyword arguments of the call.
        """
        held: list[Callable[[], object]] = []
        with self._turn:
            if self._role != "primary":
                return self._refused()
            self._held_replies = held
            try:
                reply = getattr(self._service, method)(*args, **kwargs)
                if self._in_sync:
                    self._forward(method, args, kwargs)
            finally:
                self._held_replies = None
        for settle in held:
            self._last_forwarded.on_done(settle)
        return self._when_both_have_it(reply)

    def observe(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], even_recovering: bool
    ) -> Any:
        """Serves a call from an observer on this copy alone, since it changes nothing.

        Args:
          method: the name of the service's method.
          args: the positional arguments of the call.
          kwargs: the keyword arguments of the call.
          even_recovering: whether to answer even while this copy is recovering, because no other
            copy knows more.

        Raises:
          NodeDied: this copy is recovering, and `even_recovering` is False.
        """
        if self._role == "recovering" and not even_recovering:
            raise NodeDied(f"this copy of {self._name} is recovering")
        return getattr(self._service, method)(*args, **kwargs)

    def checkpoint(self) -> Any:
        """Returns the state to save in a checkpoint, as this copy has it."""
        return self._service.checkpoint()

    def whole(self) -> bool:
        """Returns whether both copies have the full state, as far as this copy knows."""
        return self._role == "backup" or (self._role == "primary" and self._in_sync)

    # Called by the other copy.

    def follow(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Serves a call that the primary has served; a deferred reply is dropped.

        Raises:
          NodeDied: this copy is not the backup.
        """
        with self._turn:
            if self._role != "backup":
                raise NodeDied(f"this copy of {self._name} is {self._role}, not backup")
            self._watch()
            getattr(self._service, method)(*args, **kwargs)

    def install(self, state: Any) -> None:
        """Replaces this copy's state by the primary's, and makes this copy the backup.

        The calls that the primary forwards afterwards arrive afterwards, too.
        """
        with self._turn:
            self._service.restore(state)
            self._role = "backup"
            self._watch()

    def peer_recovering(self, place: int) -> bool:
        """Records that the other copy has lost its state.

        If both copies are recovering, the one with the lower place becomes the primary, but only
        once the other copy has answered its own call of this method. It does not become the primary
        right away, because the other copy may meanwhile have failed, come back as a new
        incarnation, and received a state.

        Args:
          place: the place of the other copy.

        Returns:
          Whether the other copy will be sent a state.
        """
        with self._turn:
            if self._role == "recovering":
                self._watch()
                return place > self._place
            self._become_primary()
            self._install()
            return True

    def present(self) -> None:
        """Does nothing; the answer shows that this copy is up and has handled all earlier calls."""

    def watch(self) -> Future[None]:
        """Returns a future that is never settled: the caller's wait fails when this node fails."""
        return Future(f"the death of {self._node.name}")

    def _refused(self) -> Future[Any]:
        """Returns a future that fails with NodeDied once the other copy has answered, or failed.

        If it failed at once, the caller would call again at once, and keep doing so until this
        copy learns that the other one has failed.
        """
        self._watch()
        refused: Future[Any] = Future(f"the primary of {self._name}")
        error = NodeDied(f"this copy of {self._name} was {self._role}, not primary")
        _ = self._tell(ReplicatedService.present, then=lambda _: refused.set_error(error))
        return refused

    def _watch(self) -> None:
        if self._watching is None:
            self._watching = self._tell(ReplicatedService.watch, then=self._peer_died)

    def _peer_died(self, _: Future[None]) -> None:
        self._watching = None
        self._become_primary()
        self._await_peer()

    def _ask_for_state(self, answer: Future[bool]) -> None:
        """Handles the other copy's answer to `peer_recovering`, after this copy has come back.

        If neither copy has the full state, this one continues from the checkpoint as the primary.
        """
        if answer.error() is not None:
            self._become_primary()
            self._await_peer()
        elif answer.result():
            self._watch()
        else:
            self._become_primary()
            self._install()

    def _become_primary(self) -> None:
        self._role, self._in_sync = "primary", False

    def _forward(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Sends a call on to the other copy, which serves it, too."""
        self._watch()
        installs = self._installs
        self._last_forwarded = self._tell(
            ReplicatedService.follow,
            method,
            args,
            kwargs,
            then=lambda answer: self._forwarded(answer, installs),
        )

    def _when_both_have_it(self, reply: Any) -> Future[Any]:
        """Delays a reply until the other copy has all the updates that it shows, or has failed.

        A later call may settle a deferred reply; the reply then waits until that call has been
        forwarded.
        """
        outcome: Future[Any] = reply if isinstance(reply, Future) else ready(reply)
        both: Future[Any] = Future(outcome.label)

        def settle() -> None:
            error = outcome.error()
            if error is not None:
                both.set_error(error, [outcome])
            else:
                both.set_result(outcome.result())

        outcome.on_done(lambda: self._once_forwarded(settle))
        return both

    def _once_forwarded(self, settle: Callable[[], object]) -> None:
        with self._turn:
            if self._held_replies is not None:  # a call that is not forwarded yet settled it
                self._held_replies.append(settle)
                return
            forwarded = self._last_forwarded
        forwarded.on_done(settle)

    def _forwarded(self, answer: Future[None], installs: int) -> None:
        """Handles the other copy's answer; if it failed, it must be sent the full state again."""
        if answer.error() is not None and installs == self._installs:
            self._in_sync = False
            self._await_peer()

    def _await_peer(self) -> None:
        if not self._awaiting_peer:
            self._awaiting_peer = True
            with calling_as(self._caller):
                up = self._node.service(self._peer).up()
            up.on_done(self._install)

    def _install(self) -> None:
        """Sends the other copy the full state of this one."""
        with self._turn:
            self._awaiting_peer = False
            self._in_sync, self._installs = True, self._installs + 1
            installs, caller = self._installs, self._caller
            caller.observations.note("installs", self._peer, caller.calls + 1)  # the next call
            _ = self._tell(
                ReplicatedService.install,
                self._service.state(),
                then=lambda answer: self._forwarded(answer, installs),
            )
            self._watch()

    def _tell(
        self, method: Callable[..., Any], *args: Any, then: Callable[[Future[Any]], None]
    ) -> Future[Any]:
        """Calls the other copy; `then` receives its answer."""
        with calling_as(self._caller):
            answer = self._node.service(self._peer).call(method, *args)
        answer.on_done(lambda: self._answered(answer, then))
        return answer

    def _answered(self, answer: Future[Any], then: Callable[[Future[Any]], None]) -> None:
        answer.see()
        with self._turn:
            then(answer)
