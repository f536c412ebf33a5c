"""A connection between two processes: messages in order, arrays by the shortest way."""

from __future__ import annotations

import collections
import contextlib
import math
import pickle
import queue
import socket
import struct
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, final

import numpy as np

from dbjax.runtime.ray.codec import ALIGNMENT, Host, Packed, pack, unpack
from dbjax.runtime.ray.handshake import Address, below
from dbjax.runtime.ray.segments import SHARES, Arena, Mappings

_INLINE = 4096  # arrays of fewer bytes than this go with the message
_LENGTH = struct.Struct("<I")
Message = tuple[Any, ...]  # its kind and a number first: they stay readable, whatever follows


class Identity(NamedTuple):
    """A life of a process, as it says at the beginning of a connection."""

    name: str
    machine: str  # those that share memory have the same
    pid: int
    address: Address | None = None  # where it listens: no other life does


class Ends(NamedTuple):
    """What a wire tells its owner.

    Attributes:
      receive: a message has come.
      refused: a message could not be sent: it cannot be pickled.
      lost: the connection broke, or was ended. The other process may live.
      failed: an error of this program has ended it.
    """

    receive: Callable[[Wire, Message], None]
    refused: Callable[[Wire, Message, Exception], None]
    lost: Callable[[Wire], None]
    failed: Callable[[Exception], None]


@final
class Wire:
    """One connection. A thread sends, another receives; sending never waits.

    Args:
      connect: makes the connection; in the sending thread.
    """

    def __init__(
        self, connect: Callable[[], Connection], me: Identity, arena: Arena, ends: Ends
    ) -> None:
        self._me, self._arena, self._ends = me, arena, ends
        self._connect = connect
        self._queue: queue.SimpleQueue[tuple[Message, bool] | None] = queue.SimpleQueue()
        self._lent: collections.Counter[int] = collections.Counter()  # our segments, to them
        self._lock = threading.Lock()
        self._lost = self._buried = False
        self._connection: Connection | None = None
        self._shared: Mappings | None = None
        self.peer: Identity | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True, name="wire sends").start()

    def send(self, message: Message, *, once: bool = False) -> None:
        """Sends a message; `once`: others will be sent the same arrays."""
        self._queue.put((message, once))

    def close(self) -> None:
        """Ends it, after what is to be sent has been."""
        self._queue.put(None)

    def cut(self) -> None:
        """Ends it at once."""
        self.close()
        with self._lock, contextlib.suppress(OSError):
            if self._connection is not None:
                below(self._connection, lambda s: s.shutdown(socket.SHUT_RDWR))

    def bury(self) -> None:
        """The other process is dead: ends it, and takes back what that was lent."""
        self._buried = True
        self.cut()
        self._take_back()

    def lends(self) -> bool:
        """Whether the other process may still read what this one has written."""
        return any(self._lent.values())

    def _run(self) -> None:
        try:
            connection = self._connect()
        except Exception:  # nobody is there, or none of us
            self._end()
            return
        receiver = threading.Thread(target=self._receive_all, daemon=True, name="wire receives")
        try:
            self._greet(connection)
            receiver.start()
            while (item := self._queue.get()) is not None:
                self._send(connection, *item)
        except (OSError, EOFError):
            pass
        except Exception as error:
            self._ends.failed(error)
        self.cut()
        self._end()
        if receiver.ident is not None:
            receiver.join()  # it would read another's file
        with self._lock:
            self._connection = None
        connection.close()

    def _greet(self, connection: Connection) -> None:
        below(connection, _prepare)
        connection.send_bytes(pickle.dumps(self._me))
        self.peer = peer = Identity(*pickle.loads(connection.recv_bytes()))
        if SHARES and peer.machine == self._me.machine:
            self._shared = Mappings(peer.pid)
        self._connection = connection

    def _send(self, connection: Connection, message: Message, once: bool) -> None:
        try:
            packed = pack(message[2:])
            way, trailer = self._way(packed, once)
        except Exception as error:
            self._ends.refused(self, message, error)
            return
        freed = self._drain()
        about = (way, packed.layout, freed, message[:2])
        header = pickle.dumps(about, pickle.HIGHEST_PROTOCOL)
        inline = trailer if way == "inline" else b""
        connection.send_bytes(
            b"".join((_LENGTH.pack(len(header)), header, _LENGTH.pack(len(packed.body)),
                      packed.body, inline))
        )  # fmt: skip
        if way == "stream":
            connection.send_bytes(trailer)

    def _way(self, packed: Packed, once: bool) -> tuple[Any, Any]:
        """How its arrays travel, and what is to be sent of them."""
        if not packed.arrays:
            return "none", b""
        if self._shared is None or packed.nbytes < _INLINE:
            memory = np.empty(packed.nbytes, np.uint8)
            packed.write(memory)
            return ("inline" if packed.nbytes < _INLINE else "stream"), memory.data
        segment = (self._arena.put_once if once else self._arena.put)(packed)
        with self._lock:
            if self._lost:
                self._arena.release(segment.number)
            else:
                self._lent[segment.number] += 1
        return (segment.number, segment.handle, segment.nbytes), b""

    def _drain(self) -> list[int]:
        """What the other process may use again."""
        freed: list[int] = []
        if self._shared is not None:
            with contextlib.suppress(IndexError):
                while True:
                    freed.append(self._shared.freed.popleft())
        return freed

    def _receive_all(self) -> None:
        connection = self._connection
        assert connection is not None
        try:
            while (message := self._received(connection)) is not None:
                self._ends.receive(self, message)
                del message  # what is not used any more can be sent back
        except Exception as error:
            self._ends.failed(error)
            self.close()  # what tells of it may be sent here
        else:
            self.cut()
            self._end()

    def _received(self, connection: Connection) -> Message | None:
        """The next message; None: there will be none."""
        try:
            return self._read(connection)
        except (OSError, EOFError):
            return None

    def _read(self, connection: Connection) -> Message:
        raw = memoryview(connection.recv_bytes())
        header, rest = _cut(raw)
        body, inline = _cut(rest)
        way, layout, freed, tag = pickle.loads(header)
        for number in freed:
            self._returned(number)
        memory: Host | None = None
        if way == "inline":
            memory = np.frombuffer(inline, np.uint8)
        elif way == "stream":
            memory = _aligned(layout)
            connection.recv_bytes_into(memory.data)
        elif way != "none":
            assert self._shared is not None
            memory = self._shared.open(*way)
        try:
            return (*tag, *unpack(body, layout, memory))
        except Exception as error:  # of a class, say, that this process cannot import
            return ("unreadable", *tag, error)

    def _returned(self, number: int) -> None:
        with self._lock:
            if not self._lent[number]:  # all was taken back already
                return
            self._lent[number] -= 1
        self._arena.release(number)

    def _end(self) -> None:
        with self._lock:
            if self._lost:
                return
            self._lost = True
        if self._shared is not None:
            self._shared.close()
        self._take_back()
        self._ends.lost(self)

    def _take_back(self) -> None:
        """Memory that the dead do not read any more; a living process whose wire broke may."""
        with self._lock:
            if not (self._lost and self._buried):
                return
            lent, self._lent = self._lent, collections.Counter()
        for number, times in lent.items():
            self._arena.release(number, times)


def _cut(raw: memoryview) -> tuple[memoryview, memoryview]:
    (length,) = _LENGTH.unpack_from(raw)
    end = _LENGTH.size + length
    return raw[_LENGTH.size : end], raw[end:]


def _aligned(layout: Any) -> Host:
    """Fresh memory for these arrays."""
    _, dtype, shape, offset = layout[-1]
    last = math.prod(shape) * dtype.itemsize
    size = offset + -(-last // ALIGNMENT) * ALIGNMENT
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


def _prepare(of: socket.socket) -> None:
    """Small messages go at once; a break shows even where nobody sends."""
    of.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    of.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        of.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
