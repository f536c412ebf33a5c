"""Two copies of a service on two machines, one behind the other.

After van Renesse & Schneider 2004, "Chain Replication for Supporting High Throughput and
Availability", with a chain of two. The head serves and passes every call on; it replies when
both have served it. So whatever was acknowledged, both have; when the head dies, the backup
goes on as the head, and whoever had called the dead one calls again. Services know a repeated
call (a push by its sequence number). A machine that comes back is given a copy, and is the
backup from then on. Departures: all reads go to the head, which answers them only when the
backup has everything that they show.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal, final

from dbjax.errors import NodeDied
from dbjax.runtime.interface import Future, Node, calling_as, current, ready

Make = Callable[..., Any]


def make_or_restore(node: Node, make: Make, name: str, *args: Any) -> Any:
    """The service, as the last checkpoint of it under `name` knew it; else as at the beginning."""
    service = make(node, *args)
    saved = node.saved(name)
    if saved is not None or node.incarnation:
        service.restore(service.state() if saved is None else saved, checkpoint=True)
    return service


@final
class ReplicatedService:
    """One of two copies of a service.

    Args:
      name: of the service.
      place: 0 for the one that is the head at first.
      peer: name of the other copy.
      make: (node, *args) -> the service, which has `state` and `restore`, and knows a
        repeated call.
    """

    def __init__(
        self, node: Node, make: Make, name: str, place: int, peer: str, *args: Any
    ) -> None:
        self._node, self._name, self._place, self._peer = node, name, place, peer
        self._caller = current.caller
        self._service = make_or_restore(node, make, name, *args)
        self._role: Literal["head", "backup", "blank"] = "backup" if place else "head"
        self._in_sync = True  # whether the other copy has been given all that this one has
        self._installs = 0
        self._followed_last: Future[None] = ready(None)
        self._due: list[Callable[[], object]] | None = None  # replies, while a call is served
        # Answers come in threads of their own where time is real; none may see half a call.
        self._turn = threading.RLock()
        self._awaiting = False
        self._watching: Future[None] | None = None
        if node.returned:  # all is lost but what a checkpoint holds
            self._role, self._in_sync = "blank", False
            _ = self._told(ReplicatedService.blank, self._place, then=self._look_for_state)

    # For whoever uses the service.

    def serve(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The reply of the service; deferred until the backup has served the call too.

        Fails with NodeDied where this is not the head (any more, or yet).
        """
        due: list[Callable[[], object]] = []
        with self._turn:
            if self._role != "head":
                return self._refused()
            self._due = due
            try:
                reply = getattr(self._service, method)(*args, **kwargs)
                if self._in_sync:
                    self._follow(method, args, kwargs)
            finally:
                self._due = None
        for settle in due:
            self._followed_last.on_done(settle)
        return self._when_both(reply)

    def observe(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], blank_too: bool
    ) -> Any:
        """The reply of this copy, to whoever changes nothing.

        Args:
          blank_too: nobody knows more than this copy.

        Raises:
          NodeDied: this copy has lost all.
        """
        if self._role == "blank" and not blank_too:
            raise NodeDied(f"this copy of {self._name} is blank")
        return getattr(self._service, method)(*args, **kwargs)

    def whole(self) -> bool:
        """Whether this copy has everything, and so has the other one, as far as it knows."""
        return self._role == "backup" or (self._role == "head" and self._in_sync)

    # For the other copy.

    def follow(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What the head has served. Where a reply is deferred, nobody waits for it here."""
        with self._turn:
            if self._role != "backup":
                raise NodeDied(f"this copy of {self._name} is {self._role}, not backup")
            self._watch()
            getattr(self._service, method)(*args, **kwargs)

    def install(self, state: Any) -> None:
        """All that the head knows; what it passes on comes behind it."""
        with self._turn:
            self._service.restore(state)
            self._role = "backup"
            self._watch()

    def blank(self, place: int) -> bool:
        """The other copy, of that place, has lost all; whether it will be given anything.

        Two that are blank are led by the one of the lower place, once the other has told it so.
        Not at once: who asked may have died since, and have been given a state as another.
        """
        with self._turn:
            if self._role == "blank":
                self._watch()
                return place > self._place
            self._lead()
            self._install()
            return True

    def present(self) -> None:
        """Says that this copy is alive, behind all that it said before."""

    def watch(self) -> Future[None]:
        """Never answered: it fails when this node dies."""
        return Future(f"the death of {self._node.name}")

    def _refused(self) -> Future[Any]:
        """NodeDied, once this copy knows of the other whatever there was to be known.

        Refused at once, whoever called would come again at once, for as long as it takes a death
        to be known here.
        """
        self._watch()
        refused: Future[Any] = Future(f"the head of {self._name}")
        error = NodeDied(f"this copy of {self._name} was {self._role}, not head")
        _ = self._told(ReplicatedService.present, then=lambda _: refused.set_error(error))
        return refused

    def _watch(self) -> None:
        if self._watching is None:
            self._watching = self._told(ReplicatedService.watch, then=self._peer_died)

    def _peer_died(self, _: Future[None]) -> None:
        self._watching = None
        self._lead()
        self._await_peer()

    def _look_for_state(self, answer: Future[bool]) -> None:
        """Back from the dead: if nobody has the state, this copy goes on from the checkpoint."""
        if answer.error() is not None:
            self._lead()
            self._await_peer()
        elif answer.result():
            self._watch()
        else:
            self._lead()
            self._install()

    def _lead(self) -> None:
        self._role, self._in_sync = "head", False

    def _follow(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The other copy is to serve the call too."""
        self._watch()
        installs = self._installs
        self._followed_last = self._told(
            ReplicatedService.follow,
            method,
            args,
            kwargs,
            then=lambda f: self._followed(f, installs),
        )

    def _when_both(self, reply: Any) -> Future[Any]:
        """The reply, or what it is a promise of, once the other copy knows what it shows, or died.

        What is promised may be settled by a later call: it waits until that is followed.
        """
        outcome: Future[Any] = reply if isinstance(reply, Future) else ready(reply)
        both: Future[Any] = Future(outcome.label)

        def settle() -> None:
            error = outcome.error()
            if error is not None:
                both.set_error(error, [outcome])
            else:
                both.set_result(outcome.result())

        outcome.on_done(lambda: self._once_followed(settle))
        return both

    def _once_followed(self, settle: Callable[[], object]) -> None:
        with self._turn:
            if self._due is not None:  # by a call that the other copy has not been told of yet
                self._due.append(settle)
                return
            followed = self._followed_last
        followed.on_done(settle)

    def _followed(self, followed: Future[None], installs: int) -> None:
        """The other copy has served a call; if it failed, it is to be given everything again."""
        if followed.error() is not None and installs == self._installs:
            self._in_sync = False
            self._await_peer()

    def _await_peer(self) -> None:
        if not self._awaiting:
            self._awaiting = True
            with calling_as(self._caller):
                up = self._node.service(self._peer).up()
            up.on_done(self._install)

    def _install(self) -> None:
        """Gives the other copy all that this one knows."""
        with self._turn:
            self._awaiting = False
            self._in_sync, self._installs = True, self._installs + 1
            installs = self._installs
            _ = self._told(
                ReplicatedService.install,
                self._service.state(),
                then=lambda f: self._followed(f, installs),
            )
            self._watch()

    def _told(
        self, method: Callable[..., Any], *args: Any, then: Callable[[Future[Any]], None]
    ) -> Future[Any]:
        """Calls the other copy; `then` looks at what comes of it."""
        with calling_as(self._caller):
            answer = self._node.service(self._peer).call(method, *args)
        answer.on_done(lambda: self._heard(answer, then))
        return answer

    def _heard(self, answer: Future[Any], then: Callable[[Future[Any]], None]) -> None:
        answer.see()
        with self._turn:
            then(answer)
