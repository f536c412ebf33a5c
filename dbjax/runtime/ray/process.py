"""The process of one node: a Ray actor, which Ray makes again when it has died."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import logging
import os
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple, final

import jax
import ray

from dbjax.errors import one_line
from dbjax.runtime.context import DRIVER, Caller, calling_as
from dbjax.runtime.event_log import EventLog
from dbjax.runtime.futures import Future
from dbjax.runtime.interface import size_bytes
from dbjax.runtime.joint import free_address, join
from dbjax.runtime.ray.handle import PEERS, Origin, Peer
from dbjax.runtime.ray.messages import Message, decode, encode, sendable
from dbjax.runtime.recording import LiveObservations
from dbjax.runtime.threads import ThreadsRuntime
from dbjax.runtime.trace import Row, Span, Trace

_LISTEN_S = 0.2  # how often a process sends what it has recorded, and shows that it is alive
_GROUP_S = 0.5  # how long processes may still compute jointly at the end of a run
_LARGE = 2**20  # a reply of more bytes is copied in a thread of its own
_LOG = logging.getLogger(__name__)
Start = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]  # a function, its arguments


class RayNode(NamedTuple):
    """What runs on a node."""

    name: str
    service: Start | None = None  # makes its service
    main: Start | None = None  # makes its coroutine
    state_name: str | None = None  # under which the service's state is checkpointed, if it is
    group: tuple[str, ...] = ()  # the names of the nodes that compute jointly with it, and its own


class LogFile(NamedTuple):
    """The file with the event log of one incarnation of a process."""

    node: str  # the name of the node
    machine: str  # Ray's name of the machine
    path: str

    def rest(self, taken: int) -> str:
        """Returns the lines after the header and the first `taken` ones, and removes the file."""
        with open(self.path) as file:
            lines = file.readlines()
        os.unlink(self.path)
        return "".join(line for line in lines[1 + taken :] if line.endswith("\n"))


class Settings(NamedTuple):
    """The settings that all processes of a run share."""

    seed: int
    max_spans: int  # the largest number of spans that a process collects
    logs: bool  # whether there is an event log
    single_replica: bool
    wire_dtype: str  # see `RayOptions`
    jax: dict[str, Any]  # options of `jax.config`


class Batch(NamedTuple):
    """What a process has recorded since the last batch.

    The driver must know these events: ("ready",), ("ended", what the coroutine returned),
    ("ended badly", its error), ("suspect", a peer that does not answer), ("stopped",), ("lost", an
    error that nobody awaits), ("failed", an error that ends the run at once).
    """

    events: list[tuple[Any, ...]]
    rows: list[Row]
    spans: list[Span]
    lines: str  # of the event log


class _Elsewhere(NamedTuple):
    """The node of a caller in another process, which records the spans of its calls itself."""

    name: str
    observer: bool
    elsewhere: bool = True


@final
class _Order:
    """The calls of one process, in the order in which it made them; Ray does not keep it."""

    def __init__(self, incarnation: int) -> None:
        self.incarnation, self._next = incarnation, 0
        self._early: dict[int, asyncio.Event] = {}

    async def turn(self, number: int) -> None:
        """Waits until all earlier calls have been taken; `taken` must be called afterwards."""
        if number > self._next:
            await self._early.setdefault(number, asyncio.Event()).wait()

    def taken(self) -> None:
        """Lets the next call take its turn."""
        self._next += 1
        if self._next in self._early:
            self._early.pop(self._next).set()


def _control(method: Any) -> Any:
    """Marks a method that has a thread of its own, which no service holds up."""
    return ray.method(concurrency_group="control")(method)


@final
class Process:
    """Runs a node's service and coroutine in its threads, as the driver says.

    Args:
      settings: the settings that all processes share.
    """

    def __init__(self, settings: Settings) -> None:
        for option, value in settings.jax.items():
            jax.config.update(option, value)  # before jax starts, as the number of devices must be
        self._trace, self._lines = Trace(max_spans=settings.max_spans), list[str]()
        self._file = _new_file() if settings.logs else None
        self._log = EventLog(self._write) if settings.logs else None
        del self._lines[:]  # the header, which the driver has written
        self._threads = ThreadsRuntime(seed=settings.seed, trace=self._trace, log=self._log)
        engine = self._engine = self._threads.engine
        engine.services, engine.single_replica = PEERS, settings.single_replica
        PEERS.engine, PEERS.tell, PEERS.dtype = engine, self._tell, settings.wire_dtype
        if self._log is not None:
            PEERS.flush = self._log.flush
        self._orders: dict[str, _Order] = {}
        self._events: list[tuple[Any, ...]] = []
        self._news = asyncio.Event()  # there are events
        self._end_s: float | None = None  # how long the end of the run may take here

    @_control
    async def hello(self, in_group: bool) -> tuple[str, str, str, str]:
        """Returns where this process is.

        Args:
          in_group: whether it will be one of a group.

        Returns:
          Ray's name of this machine, the owner of this process's memory, its log, and an address at
          which JAX can listen here if the process is the first of a group.
        """
        self._loop = asyncio.get_running_loop()
        log = self._file.name if self._file is not None else ""
        address = free_address(ray.util.get_node_ip_address()) if in_group else ""
        return ray.get_runtime_context().get_node_id(), PEERS.arena.owner, log, address

    @_control
    async def begin(
        self,
        me: Peer,
        incarnation: int,
        with_main: bool,
        peers: list[Peer],
        states: dict[str, Any],
        nodes: dict[str, Message],
        group: tuple[str, int, int] | None,
    ) -> None:
        """Makes the service and the coroutine, before anything can call the service.

        It does nothing if Ray has restarted the process that the driver means.

        Args:
          me: the process that the driver means.
          incarnation: the incarnation of the node.
          with_main: whether the node's coroutine has not ended yet.
          peers: the processes that can be called.
          states: the states of the node's service in the last checkpoint, by their names.
          nodes: all nodes by name, encoded.
          group: the arguments of `joint.join`; None: the process computes by itself.
        """
        if me.memory != PEERS.arena.owner:
            return
        PEERS.me = me
        PEERS.learn(peers)
        self._engine.incarnation, self._engine.returned = incarnation, me.incarnation > 0
        self._threads.latest_states = states
        if group is not None:
            self._end_s = _GROUP_S
            await asyncio.to_thread(_join, *group)
        try:
            await asyncio.to_thread(self._make, nodes[me.name], with_main)
            self._tell("ready")
        except Exception as error:
            self._tell("failed", sendable(error))

    def _make(self, node: Message, with_main: bool) -> None:
        name, service, main, state_name, _ = decode(node)
        if service is not None:
            make, args, kwargs = service
            if state_name is None:
                self._threads.serve(name, make, *args, **kwargs)
            else:
                self._threads.serve_restorable(name, state_name, make, *args)
        if main is not None and with_main:
            function, args, kwargs = main
            ended = self._threads.spawn(name, function, *args, **kwargs)
            ended.on_done(functools.partial(self._ended, ended))
        self._threads.compile_ahead()

    @_control
    async def go(self, now_s: float, peers: list[Peer]) -> None:
        """Starts the node's coroutine."""
        PEERS.learn(peers)
        self._threads.start(now_s)

    @_control
    async def learn(self, peers: list[Peer]) -> None:
        """See `Peers.learn`."""
        PEERS.learn(peers)

    @_control
    async def listen(self, memory: str) -> Message | None:
        """Returns a `Batch`, at once if there are events, and otherwise within 0.2 s.

        It returns None if Ray has restarted the process that the driver means.
        """
        if memory != PEERS.arena.owner:
            return None
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._news.wait(), _LISTEN_S)
        self._news.clear()
        events, spans = _taken(self._events), _taken(self._trace.spans)
        return encode(Batch(events, self._rows(), spans, "".join(_taken(self._lines))))

    def _rows(self) -> list[Row]:
        """Takes the rows before the first one that is still being computed."""
        computed = itertools.takewhile(_is_computed, self._trace.rows[:])
        return _taken(self._trace.rows, len(list(computed)))

    @_control
    async def stop(self) -> None:
        """Ends the run here, after the steps that are being computed."""
        limit = asyncio.timeout(self._end_s)
        try:
            async with limit:
                await asyncio.to_thread(self._threads.finish)
                await asyncio.to_thread(jax.block_until_ready, self._trace.rows)
            if self._log is not None:
                self._log.flush()
        except Exception as error:
            if not limit.expired():  # or another process of the group has stopped too early
                self._tell("lost", sendable(error))
        self._tell("stopped")

    async def call(
        self, origin: Origin, number: int, incarnation: int, message: Message
    ) -> Message | None:
        """Serves a call of another process, under the label and the number that its caller gave it.

        Args:
          origin: where the call comes from.
          number: the number of the call among those of that process to this one.
          incarnation: the incarnation of this process that is called.
          message: the name of the method, its positional and its keyword arguments.

        Returns:
          A message of (error, reply); None if this is another incarnation, or the caller counts as
          dead.
        """
        process = origin.process
        if incarnation != PEERS.me.incarnation or PEERS.is_dead(process):
            return None
        order = self._orders.get(process.name)
        if order is None or order.incarnation < process.incarnation:
            order = self._orders[process.name] = _Order(process.incarnation)
        await order.turn(number)
        try:
            if PEERS.is_dead(process):
                return None
            method, args, kwargs = decode(message)
            del message
            with calling_as(_caller(origin), (origin.number, origin.attempt)):
                future = self._engine.services[PEERS.me.name].take(method, args, kwargs)
            del args, kwargs  # so that their memory can be released
        except Exception as error:  # the message cannot be decoded here
            return encode((sendable(error), None))
        finally:
            order.taken()
        await _done(future)
        PEERS.flush()
        try:
            reply = None, future.result()
        except Exception as error:
            return encode((sendable(error), None))
        route = PEERS.route(process, origin.node)
        try:
            if size_bytes(reply) < _LARGE:
                return encode(reply, route)
            return await asyncio.to_thread(encode, reply, route)
        except Exception as error:
            what = f"{PEERS.me.name}.{method}: its reply cannot be sent"
            return encode((TypeError(f"{what}: {one_line(error)}"), None))

    def _write(self, lines: str) -> None:
        """Writes lines of the event log, also where they survive the death of this process."""
        self._lines.append(lines)
        try:
            if self._file is not None:
                self._file.write(lines)
                self._file.flush()  # to the operating system: nothing waits for the disk
        except OSError as error:
            self._file = None
            why = f"the log of {PEERS.me.name} could not be written: {one_line(error)}"
            self._lines.append(json.dumps({"no replay": why, "has all calls": False}) + "\n")

    def _ended(self, ended: Future[Any]) -> None:
        error = ended.error()
        if error is None:
            self._tell("ended", ended.result())
        else:
            ended.see()
            self._tell("ended badly", sendable(error))

    def _tell(self, *event: Any) -> None:
        """Sends an event to the driver."""
        self._events.append(event)
        self._loop.call_soon_threadsafe(self._news.set)


def _new_file() -> Any:
    """Creates a file for the event log of this process, which survives the process."""
    return tempfile.NamedTemporaryFile("w", prefix="dbjax-events-", delete=False)


def _caller(origin: Origin) -> Caller:
    if origin.label == DRIVER.label:
        return DRIVER
    node = _Elsewhere(origin.node, origin.observer)
    return Caller(node, origin.label, LiveObservations(), incarnation=origin.incarnation)


async def _done(future: Future[Any]) -> None:
    """Waits until a future is done, whichever thread settles it."""
    if not future.done():
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        future.on_done(lambda: loop.call_soon_threadsafe(done.set))
        await done.wait()


def _join(*group: Any) -> None:
    """Joins a group, or ends this process: if one of a group fails, all are started again."""
    try:
        join(*group)
    except Exception:
        _LOG.exception("cannot join the other processes of the replica")
        os._exit(1)


def _taken(items: list[Any], count: int | None = None) -> list[Any]:
    """Removes and returns the first items of a list, to which other threads may add meanwhile."""
    found = items[: len(items) if count is None else count]
    del items[: len(found)]
    return found


def _is_computed(row: Row) -> bool:
    arrays: list[Any] = [value for value in row.values() if isinstance(value, jax.Array)]
    return all(array.is_ready() for array in arrays)
