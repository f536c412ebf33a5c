"""Memory that the processes of one machine share: one process writes it, others read it in place.

Ray's object store does the same for any object. Here, memory is reused as soon as its last reader
has released it, so its pages are first touched once instead of with every message, and no third
process takes part.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import itertools
import mmap
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, final

import numpy as np

from dbjax.runtime.ray.codec import Host, Packed

SHARES = sys.platform == "linux"  # anonymous memory, which is freed with its last process
_PAGE = 4096


@final
@dataclasses.dataclass(eq=False)
class Segment:
    """A piece of shared memory.

    Attributes:
      number: its number in its arena.
      handle: its file descriptor in the process that writes it.
      memory: its bytes.
      users: the number of its readers, plus one while the arena keeps it for later messages.
    """

    number: int
    handle: int
    memory: Host
    users: int = 0

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return self.memory.nbytes


@final
class Arena:
    """The segments that this process writes.

    Args:
      kept: for how many of the latest messages of `put_once` the segments are kept.

    Attributes:
      written: the number of messages that were copied into memory.
    """

    def __init__(self, kept: int = 2) -> None:
        self.written = 0
        self._lock, self._keeping = threading.Lock(), threading.Lock()
        self._free: list[tuple[int, int, Segment]] = []  # sorted by size
        self._segments: dict[int, Segment] = {}
        self._numbers = itertools.count()
        self._kept: deque[tuple[Sequence[Any], Segment]] = deque()
        self._most_kept = kept

    def put(self, packed: Packed) -> Segment:
        """Writes the arrays of a message into a segment, which then has one user."""
        segment = self._take(packed.nbytes)
        packed.write(segment.memory)
        self.written += 1
        return segment

    def put_once(self, packed: Packed) -> Segment:
        """Like `put`, but reuses the segment of a recent message with the same arrays.

        Many replicas fetch the snapshot of one version, which is then copied once.
        """
        with self._keeping:
            for arrays, segment in self._kept:
                if _same(arrays, packed.arrays):
                    with self._lock:
                        segment.users += 1
                    return segment
            if len(self._kept) == self._most_kept:
                self.release(self._kept.popleft()[1].number)
            segment = self.put(packed)
            with self._lock:
                segment.users += 1
            self._kept.append((packed.arrays, segment))
            return segment

    def release(self, number: int, times: int = 1) -> None:
        """Counts that a segment has so many fewer users; a segment without users can be reused."""
        with self._lock:
            segment = self._segments[number]
            segment.users -= times
            if segment.users == 0:
                bisect.insort(self._free, (segment.nbytes, number, segment))

    def _take(self, nbytes: int) -> Segment:
        with self._lock:
            at = bisect.bisect_left(self._free, (nbytes, -1))
            if at < len(self._free) and self._free[at][0] <= 2 * nbytes + _PAGE:
                segment = self._free.pop(at)[2]
            else:
                segment = self._make(nbytes)
            segment.users = 1
            return segment

    def _make(self, nbytes: int) -> Segment:
        handle = os.memfd_create("dbjax")
        size = -(-nbytes // _PAGE) * _PAGE
        os.ftruncate(handle, size)
        memory = np.frombuffer(mmap.mmap(handle, size), np.uint8)
        segment = Segment(next(self._numbers), handle, memory)
        self._segments[segment.number] = segment
        return segment


def _same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


@final
class Mappings:
    """The segments of another process, mapped into this one for reading.

    Args:
      pid: the process ID of the other process.

    Attributes:
      freed: the numbers of segments that this process has released, once for each message.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._maps: dict[int, mmap.mmap] = {}
        self.freed: deque[int] = collections.deque()

    def open(self, number: int, handle: int, nbytes: int) -> Host:
        """Returns the memory of a segment, for reading only; it is released when it is collected.

        Args:
          number: the segment's number.
          handle: its file descriptor in the other process.
          nbytes: its size.
        """
        found = self._maps.get(number)
        if found is None:
            with open(f"/proc/{self._pid}/fd/{handle}", "rb") as file:
                found = mmap.mmap(file.fileno(), nbytes, prot=mmap.PROT_READ)
            self._maps[number] = found
        memory = np.frombuffer(found, np.uint8)
        weakref.finalize(memory, self.freed.append, number).atexit = False
        return memory

    def close(self) -> None:
        """Unmaps all segments except those that are still in use."""
        self._maps.clear()
