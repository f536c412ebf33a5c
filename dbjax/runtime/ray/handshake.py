"""How two processes of a run authenticate each other, before anything is unpickled."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from typing import Any

Address = tuple[str, int]
TIMEOUT_S = 60  # how long a process that connects may take to authenticate itself


def reached(address: Address, key: bytes) -> Connection:
    """Connects to the process that listens at an address, and checks that it knows the key.

    Raises:
      OSError: no process listens there.
      AuthenticationError: the process does not know the key.
    """
    connection: Connection = Client(address)
    _or_close(connection, answer_challenge, deliver_challenge, key)
    return connection


def admitted(connection: Connection, key: bytes) -> Connection:
    """Checks that the process at the other end of an accepted connection knows the key."""
    below(connection, lambda s: _limit(s, TIMEOUT_S))
    _or_close(connection, deliver_challenge, answer_challenge, key)
    below(connection, lambda s: _limit(s, 0))
    return connection


def below(connection: Connection, use: Callable[[socket.socket], object]) -> None:
    """Calls `use` with the socket of a connection, for what `Connection` has no method."""
    with socket.socket(fileno=os.dup(connection.fileno())) as found:
        use(found)


def _or_close(connection: Connection, first: Any, second: Any, key: bytes) -> None:
    try:
        first(connection, key)
        second(connection, key)
    except BaseException:
        connection.close()
        raise


def _limit(of: socket.socket, seconds: int) -> None:
    """Sets how many seconds a read may wait; 0: forever."""
    of.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))
