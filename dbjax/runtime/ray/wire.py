"""A connection between two processes, which keeps messages in order.

Arrays are sent through shared memory where both processes are on one machine.
"""

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

_INLINE = 4096  # arrays of fewer bytes than this are part of the message
_LENGTH = struct.Struct("<I")
# A kind and a number come first. They can be read even if the rest cannot be unpickled.
Message = tuple[Any, ...]


class Identity(NamedTuple):
    """The identity that a process tells at the beginning of a connection.

    Attributes:
      name: the name of its node, or "driver".
      machine: the machine on which it runs; processes on the same machine share memory.
      pid: its process ID.
      address: where it listens, which differs between incarnations; None: not known yet.
    """

    name: str
    machine: str
    pid: int
    address: Address | None = None


class Ends(NamedTuple):
    """The callbacks by which a wire informs its owner.

    Attributes:
      receive: is called with a message that has arrived.
      refused: is called with a message that cannot be sent, since it cannot be pickled, and the
        error.
      lost: is called when the connection broke or was ended. The other process may be alive.
      failed: is called with an error of this program that has ended the connection.
    """

    receive: Callable[[Wire, Message], None]
    refused: Callable[[Wire, Message, Exception], None]
    lost: Callable[[Wire], None]
    failed: Callable[[Exception], None]


@final
class Wire:
    """A connection to another process. One thread sends, another receives; `send` never waits.

    Args:
      connect: makes the connection; the sending thread calls it.
      me: the identity of this process.
      arena: the shared memory that this process writes.
      ends: the callbacks of the owner.

    Attributes:
      peer: the identity of the other process; None until it is known.
    """

    def __init__(
        self, connect: Callable[[], Connection], me: Identity, arena: Arena, ends: Ends
    ) -> None:
        self._me, self._arena, self._ends = me, arena, ends
        self._connect = connect
        self._queue: queue.SimpleQueue[tuple[Message, bool] | None] = queue.SimpleQueue()
        # How many messages in each of our segments the other process may still read.
        self._lent: collections.Counter[int] = collections.Counter()
        self._lock = threading.Lock()
        self._lost = self._buried = False
        self._connection: Connection | None = None
        self._shared: Mappings | None = None
        self.peer: Identity | None = None

    def start(self) -> None:
        """Connects, and begins to send and to receive, in the background."""
        threading.Thread(target=self._run, daemon=True, name="wire sends").start()

    def send(self, message: Message, *, once: bool = False) -> None:
        """Queues a message.

        Args:
          message: its kind, a number, and anything else.
          once: whether other processes will be sent the same arrays, so that one copy of them
            should serve all.
        """
        self._queue.put((message, once))

    def close(self) -> None:
        """Ends the connection, after the queued messages have been sent."""
        self._queue.put(None)

    def cut(self) -> None:
        """Ends the connection at once."""
        self.close()
        with self._lock, contextlib.suppress(OSError):
            if self._connection is not None:
                below(self._connection, lambda s: s.shutdown(socket.SHUT_RDWR))

    def bury(self) -> None:
        """Ends the connection to a dead process, and releases the shared memory that it read."""
        self._buried = True
        self.cut()
        self._take_back()

    def lends(self) -> bool:
        """Returns whether the other process may still read shared memory of this one."""
        return any(self._lent.values())

    def _run(self) -> None:
        try:
            connection = self._connect()
        except Exception:  # nothing listens there, or it does not know the key
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
            receiver.join()  # otherwise it might read from a reused file descriptor
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
        """Decides how the arrays of a message are sent.

        Returns:
          The way, for the header of the message, and the bytes to send.
        """
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
        """Takes the numbers of the other process's segments that it may reuse."""
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
                del message  # so that its shared memory can be released
        except Exception as error:
            self._ends.failed(error)
            self.close()  # not at once: the report of the error may go over this connection
        else:
            self.cut()
            self._end()

    def _received(self, connection: Connection) -> Message | None:
        """Returns the next message, or None if the connection has ended."""
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
        except Exception as error:  # such as for a class that this process cannot import
            return ("unreadable", *tag, error)

    def _returned(self, number: int) -> None:
        with self._lock:
            if not self._lent[number]:  # it was released when the process was declared dead
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
        """Releases the shared memory of a dead process, if the connection has ended, too.

        A process whose connection broke may be alive, and still read the memory.
        """
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
    """Allocates aligned memory for arrays of this layout."""
    _, dtype, shape, offset = layout[-1]
    last = math.prod(shape) * dtype.itemsize
    size = offset + -(-last // ALIGNMENT) * ALIGNMENT
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


def _prepare(of: socket.socket) -> None:
    """Makes a socket send small messages at once, and notice a broken connection while idle."""
    of.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    of.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        of.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
