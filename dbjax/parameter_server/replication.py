"""Two copies of a service on two machines: a primary, and a backup behind it.

After van Renesse & Schneider 2004, "Chain Replication for Supporting High Throughput and
Availability", with a chain of two. The primary serves every call and forwards it to the backup; it
replies when both have served it. So both copies have whatever was acknowledged. When the primary
fails, the backup becomes the primary, and callers of the failed one call again. Services recognise
a repeated call (a push by its sequence number). A machine that comes back is recovering: it is
given the state of the other copy, and is the backup from then on.

Differs from the paper: all reads go to the primary, which answers them only when the backup has
everything that they show.
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
      node: where it runs.
      restored: its checkpointed state; None: it begins anew.
      make: (node, *args) -> the service, which has `state` and `restore`.
    """
    service = make(node, *args)
    if restored is not None or node.incarnation:
        service.restore(service.state() if restored is None else restored, checkpoint=True)
    return service


@final
class ReplicatedService:
    """One of two copies of a service.

    Args:
      node: where this copy runs.
      restored: the checkpointed state of the service; None: there is none.
      make: (node, *args) -> the service, which has `state` and `restore`, and recognises a
        repeated call.
      name: of the service.
      place: 0 for the copy that is the primary at first, 1 for the other.
      peer: the node of the other copy.
    """

    def __init__(
        self, node: Node, restored: Any, make: Make, name: str, place: int, peer: str, *args: Any
    ) -> None:
        self._node, self._name, self._place, self._peer = node, name, place, peer
        self._caller = current.caller
        self._service = make_service(node, restored, make, *args)
        self._role: Literal["primary", "backup", "recovering"] = "backup" if place else "primary"
        self._in_sync = True  # whether the other copy has been given all that this one has
        self._installs = 0
        self._last_forwarded: Future[None] = ready(None)
        self._held_replies: list[Callable[[], object]] | None = None  # while a call is served
        # In real time, replies are settled by other threads; none of them may see half a call.
        self._turn = threading.RLock()
        self._awaiting_peer = False
        self._watching: Future[None] | None = None
        if node.returned:  # only what a checkpoint holds is left
            self._role, self._in_sync = "recovering", False
            _ = self._tell(ReplicatedService.peer_recovering, self._place, then=self._ask_for_state)

    # Called by clients of the service.

    def serve(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Serves a call; the reply is deferred until the backup has served it, too.

        It fails with NodeDied if this copy is not the primary (any more, or yet).
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
        """The reply of this copy to an observer, which changes nothing.

        Args:
          method: of the service.
          args: of the call.
          kwargs: of the call.
          even_recovering: no copy knows more than this one.

        Raises:
          NodeDied: this copy is recovering.
        """
        if self._role == "recovering" and not even_recovering:
            raise NodeDied(f"this copy of {self._name} is recovering")
        return getattr(self._service, method)(*args, **kwargs)

    def whole(self) -> bool:
        """Whether this copy has everything, and so has the other one, as far as it knows."""
        return self._role == "backup" or (self._role == "primary" and self._in_sync)

    # Called by the other copy.

    def follow(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Serves what the primary has served. Nobody waits here for a deferred reply."""
        with self._turn:
            if self._role != "backup":
                raise NodeDied(f"this copy of {self._name} is {self._role}, not backup")
            self._watch()
            getattr(self._service, method)(*args, **kwargs)

    def install(self, state: Any) -> None:
        """Takes all that the primary knows; what the primary forwards next comes after it."""
        with self._turn:
            self._service.restore(state)
            self._role = "backup"
            self._watch()

    def peer_recovering(self, place: int) -> bool:
        """Learns that the other copy, of that place, has lost its state.

        Of two copies that recover, the one with the lower place becomes the primary once the other
        has told it. It does not do so at once: the other may have failed meanwhile, and have been
        given a state as a new incarnation.

        Returns:
          Whether the other copy will be given a state.
        """
        with self._turn:
            if self._role == "recovering":
                self._watch()
                return place > self._place
            self._become_primary()
            self._install()
            return True

    def present(self) -> None:
        """Answers after everything that this copy was told before; so the caller knows it lives."""

    def watch(self) -> Future[None]:
        """Is never answered: it fails when this node dies."""
        return Future(f"the death of {self._node.name}")

    def _refused(self) -> Future[Any]:
        """Fails with NodeDied once this copy knows everything that the other had to tell.

        If it failed at once, the caller would come again at once, for as long as it takes this
        copy to learn of the other's failure.
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
        """Back after a failure: if no copy has the state, this one goes on from the checkpoint."""
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
        """Has the other copy serve the call, too."""
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
        """The reply, once the other copy knows what it shows, or has failed.

        A deferred reply may be settled by a later call: then it waits until that is forwarded.
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
            if self._held_replies is not None:  # by a call that was not forwarded yet
                self._held_replies.append(settle)
                return
            forwarded = self._last_forwarded
        forwarded.on_done(settle)

    def _forwarded(self, answer: Future[None], installs: int) -> None:
        """The other copy has answered; if it failed, it must be given the whole state again."""
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
        """Gives the other copy all that this one knows."""
        with self._turn:
            self._awaiting_peer = False
            self._in_sync, self._installs = True, self._installs + 1
            installs = self._installs
            _ = self._tell(
                ReplicatedService.install,
                self._service.state(),
                then=lambda answer: self._forwarded(answer, installs),
            )
            self._watch()

    def _tell(
        self, method: Callable[..., Any], *args: Any, then: Callable[[Future[Any]], None]
    ) -> Future[Any]:
        """Calls the other copy; `then` is given its answer."""
        with calling_as(self._caller):
            answer = self._node.service(self._peer).call(method, *args)
        answer.on_done(lambda: self._answered(answer, then))
        return answer

    def _answered(self, answer: Future[Any], then: Callable[[Future[Any]], None]) -> None:
        answer.see()
        with self._turn:
            then(answer)
