"""A client of a service that may fail: it retries a call at the other copy, or waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

from dbjax.errors import NodeDied
from dbjax.parameter_server.replication import ReplicatedService, make_service
from dbjax.runtime.interface import (
    Caller,
    Future,
    Handle,
    Runtime,
    calling_as,
    current,
    first_of,
    journaled,
)
from dbjax.runtime.node_names import backup_name


def require_backups(method: str, backups: int) -> None:
    """Checks the number of backups that an algorithm is configured with.

    Args:
      method: the name of the algorithm, for the error message.
      backups: the number of backups of every shard.

    Raises:
      ValueError: `backups` is neither 0 nor 1.
    """
    if backups not in (0, 1):
        raise ValueError(f"{method}.shard_backups={backups} must be 0 or 1")


@final
class FailoverClient:
    """A `Handle` of a service that survives the failure of its machine.

    When a machine fails before it answers a call, the client repeats the call: at the other copy if
    there is one, otherwise when the machine is back.

    Args:
      name: the name of the service.
      copies: handles of the service's two `ReplicatedService`s, or a single handle of the service
        itself if it is not replicated.
    """

    def __init__(self, name: str, copies: Sequence[Handle[Any]]) -> None:
        self.name, self._copies = name, tuple(copies)
        self._primary = 0  # as far as is known

    @journaled
    def call(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future((method.__name__, self.name))
        caller = current.caller
        request = _Request(method, args, kwargs, caller, caller.number(), future)
        self._send(request, self._primary)
        return future

    @journaled
    def up(self) -> Future[None]:
        return first_of([copy.up() for copy in self._copies]).then(lambda _: None)

    def _send(self, request: _Request, to: int) -> None:
        copy = self._copies[to]
        with calling_as(request.caller, (request.number, request.tried)):
            if len(self._copies) == 1:
                reply = copy.call(request.method, *request.args, **request.kwargs)
            else:
                asked = request.method.__name__, request.args, request.kwargs
                if request.caller.node.observer:
                    tried_all = request.tried >= len(self._copies)
                    reply = copy.call(ReplicatedService.observe, *asked, tried_all)
                else:
                    reply = copy.call(ReplicatedService.serve, *asked)
        reply.on_done(lambda: self._replied(request, to, reply))

    def _replied(self, request: _Request, by: int, reply: Future[Any]) -> None:
        error = reply.error()
        if error is None:
            request.future.set_result(reply.result())
        elif not _is_unavailable(error):
            request.future.set_error(error, [reply])
        else:
            reply.see()
            self._send_again(request, by)

    def _send_again(self, request: _Request, failed: int) -> None:
        other = (failed + 1) % len(self._copies)
        if self._primary == failed:
            self._primary = other
        request.tried += 1
        if request.tried % len(self._copies):
            self._send(request, other)
            return
        with calling_as(request.caller):
            up = self.up()
        up.on_done(lambda: self._send(request, self._primary))


def serve_replicated(
    runtime: Runtime, name: str, backups: int, make: Callable[..., Any], *args: Any
) -> Handle[Any]:
    """Places a service on a node, and a backup of it on another node if there is one.

    Args:
      runtime: the runtime that the service is placed on.
      name: the name of the service and of its node; the backup's node is `name`/backup.
      backups: the number of backups, 0 or 1.
      make: (node, *args) -> the service.
      *args: further arguments of `make`.

    Returns:
      A handle of the service, which retries calls if nodes can fail or there is a backup.
    """
    if not backups:
        only = runtime.serve_restorable(name, name, make_service, make, *args)
        return FailoverClient(name, [only]) if runtime.nodes_can_fail else only
    nodes = (name, backup_name(name))
    copies = [
        runtime.serve_restorable(node, name, ReplicatedService, make, name, place, peer, *args)
        for place, (node, peer) in enumerate(zip(nodes, reversed(nodes), strict=True))
    ]
    return FailoverClient(name, copies)


@final
class _Request:
    """A call that has not been answered.

    Attributes:
      number: the caller's number of the call.
      tried: how many times the call has failed.
    """

    __slots__ = ("args", "caller", "future", "kwargs", "method", "number", "tried")

    def __init__(
        self,
        method: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        caller: Caller,
        number: int,
        future: Future[Any],
    ) -> None:
        self.method, self.args, self.kwargs = method, args, kwargs
        self.caller, self.number, self.future, self.tried = caller, number, future, 0


def _is_unavailable(error: BaseException) -> bool:
    """Returns whether an error means that the copy was down, or was not the primary."""
    return isinstance(error, NodeDied) or isinstance(error.__cause__, NodeDied)
