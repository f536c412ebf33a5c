"""Shared memory of the processes on one machine: one process writes it, others read it in place.

Ray's object store does the same for any object, but touches fresh pages for each. Here, memory is
written again once its last reader has released it. A segment begins with a byte for every message
that it holds; the message's reader clears the byte, so no other message has to say so.
"""

from __future__ import annotations

import collections
import contextlib
import mmap
import os
import secrets
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import numpy as np

Host = np.ndarray[Any, Any]
SHARES = sys.platform == "linux"  # memory without a name, which is freed with its last process
_HEADER = 4096  # the bytes before the data of a segment, and so the most messages that it can hold
_KEPT = 2  # one copy of each of so many recent replies serves all readers


class Lease(NamedTuple):
    """The right to read a segment. Unpickling it gives the bytes of the segment.

    They are released when the unpickled array and all views of it have been collected.
    """

    owner: str  # the arena
    number: int
    file: str  # the file that its memory appears to be
    nbytes: int
    place: int  # of the message in the header

    def __reduce__(self) -> Any:
        return _borrow, tuple(self)


class _Segment(NamedTuple):
    number: int
    file: str
    held: Host  # the header: 1 where a message may still be read
    data: Host


@final
class Arena:
    """The segments that this process writes.

    Attributes:
      owner: a name that no other arena has.
      written: how often a segment was written.
    """

    def __init__(self) -> None:
        self.owner, self.written = secrets.token_hex(8), 0
        self._lock, self._keeping = threading.Lock(), threading.Lock()
        self._segments: list[_Segment] = []
        self._kept: deque[tuple[Sequence[Any], _Segment]] = deque()
        self._readers: dict[tuple[int, int], str] = {}  # (segment, place) -> the latest reader

    def lend(
        self,
        reader: str,
        nbytes: int,
        write: Callable[[Host], None],
        key: Sequence[Any] | None = None,
    ) -> Lease:
        """Writes to a segment, and lends it to a reader.

        Args:
          reader: the name of the process that will read it.
          nbytes: the size of the memory that is needed.
          write: writes to such memory.
          key: the objects that decide what is written; a recent segment that was written for the
            same objects is lent again instead. None: that is not tried.
        """
        with self._keeping if key else contextlib.nullcontext():
            kept = self._find(key) if key else None
            with self._lock:
                segment = kept or self._free(nbytes) or self._make(nbytes)
                place = int(np.argmin(segment.held))
                segment.held[place] = 1
                self._readers[segment.number, place] = reader
            if kept is None:
                write(segment.data[:nbytes])
                self.written += 1
                if key:
                    with self._lock:
                        self._kept.append((key, segment))
                        if len(self._kept) > _KEPT:
                            self._kept.popleft()
        nbytes = _HEADER + segment.data.nbytes
        return Lease(self.owner, segment.number, segment.file, nbytes, place)

    def take_back(self, reader: str) -> None:
        """Releases everything that was lent to a process, which must be dead."""
        with self._lock:
            for (number, place), name in self._readers.items():
                if name == reader:
                    self._segments[number].held[place] = 0

    def _find(self, key: Sequence[Any]) -> _Segment | None:
        """Returns the segment that was written for this key, unless it is lent to too many."""
        return next((s for k, s in self._kept if _same(k, key) and not s.held.all()), None)

    def _free(self, nbytes: int) -> _Segment | None:
        """Returns the smallest segment that is large enough and that nobody reads."""
        kept = {segment.number for _, segment in self._kept}
        sizes = {
            segment.data.nbytes: segment
            for segment in self._segments
            if nbytes <= segment.data.nbytes <= 2 * nbytes + _HEADER
            and segment.number not in kept
            and not segment.held.any()
        }
        return sizes[min(sizes)] if sizes else None

    def _make(self, nbytes: int) -> _Segment:
        handle = os.memfd_create("dbjax")
        os.ftruncate(handle, _HEADER + -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE)
        memory = np.frombuffer(mmap.mmap(handle, 0), np.uint8)
        file = f"/proc/{os.getpid()}/fd/{handle}"
        made = _Segment(len(self._segments), file, memory[:_HEADER], memory[_HEADER:])
        self._segments.append(made)
        return made


def _same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


_mapped: dict[str, dict[int, mmap.mmap]] = collections.defaultdict(dict)  # by owner and number


def forget(owner: str) -> None:
    """Unmaps the segments of a dead process, once nobody in this one reads them any more."""
    _mapped.pop(owner, None)


def _borrow(owner: str, number: int, file: str, nbytes: int, place: int) -> Host:
    segment = _mapped[owner].get(number)
    if segment is None:
        with open(file, "r+b") as opened:
            segment = _mapped[owner].setdefault(number, mmap.mmap(opened.fileno(), nbytes))
    memory = np.frombuffer(segment, np.uint8, offset=_HEADER)  # which is the base of its views
    memory.flags.writeable = False
    weakref.finalize(memory, segment.__setitem__, place, 0).atexit = False
    return memory
