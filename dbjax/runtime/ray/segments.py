"""Memory that the processes of one machine share: what one writes, others read as it lies.

Ray's object store does the same for any object. Here memory is used again as soon as its last
reader has let go of it, so its pages are touched for the first time once and not with every
message, and nobody but the two ends takes part.
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

SHARES = sys.platform == "linux"  # memory without a name, which ends with its last process
_PAGE = 4096


@final
@dataclasses.dataclass(eq=False)
class Segment:
    """A piece of shared memory; `users` are its readers, and the arena while it keeps it."""

    number: int
    handle: int
    memory: Host
    users: int = 0

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes


@final
class Arena:
    """The segments that this process writes.

    Attributes:
      written: how many messages were copied into memory.
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
        """The arrays in a segment with one user."""
        segment = self._take(packed.nbytes)
        packed.write(segment.memory)
        self.written += 1
        return segment

    def put_once(self, packed: Packed) -> Segment:
        """As `put`; but the arrays of the last few messages are still there.

        A snapshot of a version is asked for by many, and copied once.
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
        """So many users have let go of a segment."""
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
    """The segments of another process, as this one reads them.

    Attributes:
      freed: numbers of segments that nobody here uses any more, once for each message.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._maps: dict[int, mmap.mmap] = {}
        self.freed: deque[int] = collections.deque()

    def open(self, number: int, handle: int, nbytes: int) -> Host:
        """What was written there; to be read only."""
        found = self._maps.get(number)
        if found is None:
            with open(f"/proc/{self._pid}/fd/{handle}", "rb") as file:
                found = mmap.mmap(file.fileno(), nbytes, prot=mmap.PROT_READ)
            self._maps[number] = found
        memory = np.frombuffer(found, np.uint8)
        weakref.finalize(memory, self.freed.append, number).atexit = False
        return memory

    def close(self) -> None:
        """Lets go of all but what is still read."""
        self._maps.clear()
