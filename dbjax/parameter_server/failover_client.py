"""A service that outlives its machine, as its callers see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

from dbjax.errors import NodeDied
from dbjax.parameter_server.replication import ReplicatedService, make_or_restore
from dbjax.runtime.interface import Caller, Future, Handle, Runtime, calling_as, current, first_of


def require_backups(method: str, backups: int) -> None:
    """Raises ValueError where a method is given other backups than 0 or 1."""
    if backups not in (0, 1):
        raise ValueError(f"{method}.shard_backups={backups} must be 0 or 1")


@final
class FailoverClient:
    """A `Handle` of a service that outlives its machine.

    A call that a machine takes to its grave is made again: to the other copy, if there is one,
    else when the machine is back.

    Args:
      copies: handles of its `ReplicatedService`s; or of the service itself, if it is the only one.
    """

    def __init__(self, name: str, copies: Sequence[Handle[Any]]) -> None:
        self.name, self._copies = name, tuple(copies)
        self._head = 0  # as far as is known

    def call(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        journal = current.caller.journal
        if journal is not None:
            return journal.given(self.call, method, *args, **kwargs)
        future: Future[Any] = Future((method.__name__, self.name))
        self._send(_Request(method, args, kwargs, current.caller, future), self._head)
        return future

    def up(self) -> Future[None]:
        journal = current.caller.journal
        if journal is not None:
            return journal.given(self.up)
        return first_of([copy.up() for copy in self._copies]).then(lambda _: None)

    def _send(self, request: _Request, to: int) -> None:
        copy = self._copies[to]
        with calling_as(request.caller):
            if len(self._copies) == 1:
                reply = copy.call(request.method, *request.args, **request.kwargs)
            else:
                asked = request.method.__name__, request.args, request.kwargs
                if request.caller.node.observer:
                    reply = copy.call(
                        ReplicatedService.observe, *asked, request.tried >= len(self._copies)
                    )
                else:
                    reply = copy.call(ReplicatedService.serve, *asked)
        reply.on_done(lambda: self._replied(request, to, reply))

    def _replied(self, request: _Request, by: int, reply: Future[Any]) -> None:
        error = reply.error()
        if error is None:
            request.future.set_result(reply.result())
        elif not _gone(error):
            request.future.set_error(error, [reply])
        else:
            reply.see()
            self._send_again(request, by)

    def _send_again(self, request: _Request, failed: int) -> None:
        other = (failed + 1) % len(self._copies)
        if self._head == failed:
            self._head = other
        request.tried += 1
        if request.tried % len(self._copies):
            self._send(request, other)
            return
        with calling_as(request.caller):
            up = self.up()
        up.on_done(lambda: self._send(request, self._head))


def serve_replicated(
    runtime: Runtime, name: str, backups: int, make: Callable[..., Any], *args: Any
) -> Handle[Any]:
    """Places `make(node, *args)` on a node of that name, and a second copy if it is backed up."""
    if not backups:
        only = runtime.serve(name, make_or_restore, make, name, *args)
        return FailoverClient(name, [only]) if runtime.nodes_can_fail else only
    nodes = (name, f"{name}/backup")
    copies = [
        runtime.serve(node, ReplicatedService, make, name, place, peer, *args)
        for place, (node, peer) in enumerate(zip(nodes, reversed(nodes), strict=True))
    ]
    return FailoverClient(name, copies)


@final
class _Request:
    """A call, until it is answered."""

    __slots__ = ("args", "caller", "future", "kwargs", "method", "tried")

    def __init__(
        self,
        method: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        caller: Caller,
        future: Future[Any],
    ) -> None:
        self.method, self.args, self.kwargs = method, args, kwargs
        self.caller, self.future, self.tried = caller, future, 0


def _gone(error: BaseException) -> bool:
    """Whether nobody was there, or not the one who may answer."""
    return isinstance(error, NodeDied) or isinstance(error.__cause__, NodeDied)
