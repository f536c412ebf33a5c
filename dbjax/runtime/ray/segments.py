"""Shared memory of the processes on one machine: one process writes it, others read it in place.

Ray's object store does the same for any object, but touches fresh pages for each. Here, memory is
written again once its last reader has released it. A segment begins with a number for every message
that it holds; the reader sets it to 0 when it needs the message no more, and tells nobody else.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import mmap
import os
import secrets
import sys
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import numpy as np

Host = np.ndarray[Any, Any]
SHARES = sys.platform == "linux"  # memory without a name, which is freed with its last process
_HEADER = 4096  # the bytes before the data: 1,024 readers' numbers
_ALIGNMENT = 64  # bytes; XLA needs it to use memory in place
_KEPT = 2  # one copy of each of so many recent messages serves all readers


class Lease(NamedTuple):
    """The right to read a segment. Unpickling it gives the bytes of the segment.

    They are released when the unpickled array and all views of it have been collected.
    """

    owner: str  # the arena
    file: str  # that the segment appears to be
    nbytes: int
    place: int  # of the reader's number in the header

    def __reduce__(self) -> Any:
        return _borrow, tuple(self)


@final
class _Segment:
    def __init__(self, nbytes: int) -> None:
        handle = os.memfd_create("dbjax")
        self.file = f"/proc/{os.getpid()}/fd/{handle}"
        self.nbytes = _HEADER + -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        os.ftruncate(handle, self.nbytes)
        memory = np.frombuffer(mmap.mmap(handle, 0), np.uint8)
        self.readers, self.data = memory[:_HEADER].view(np.uint32), memory[_HEADER:]


@final
class Arena:
    """The segments that this process writes."""

    def __init__(self) -> None:
        self.owner = secrets.token_hex(8)  # a name that no other arena has
        self.segments: list[_Segment] = []
        self._lock, self._keeping = threading.Lock(), threading.Lock()
        self._kept: deque[tuple[_Segment, Sequence[Host]]] = deque(maxlen=_KEPT)
        self._numbers: dict[str, int] = collections.defaultdict(itertools.count(1).__next__)

    def lend(
        self, reader: str, arrays: Sequence[Host], keep: bool
    ) -> tuple[Lease, list[tuple[int, int]]]:
        """Writes arrays of bytes to a segment, and lends it to a reader.

        Args:
          reader: the name of the process that will read it.
          arrays: the arrays.
          keep: whether a recent segment that was written from the same memory is lent again. The
            memory must not change.

        Returns:
          The lease, and where each array begins and ends.
        """
        sizes = (-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays)
        *begins, nbytes = itertools.accumulate(sizes, initial=0)
        places = [(i, i + array.nbytes) for i, array in zip(begins, arrays, strict=True)]
        with self._keeping if keep else contextlib.nullcontext():
            with self._lock:
                kept = next((s for s, a in self._kept if keep and _same(s, a, arrays)), None)
                segment = kept or self._free(nbytes)
                place = int(np.argmin(segment.readers))
                segment.readers[place] = self._numbers[reader]
            if kept is None:
                for array, (begin, end) in zip(arrays, places, strict=True):
                    np.copyto(segment.data[begin:end], array)
                with self._lock:
                    self._kept.extend([(segment, arrays)] if keep else [])
        return Lease(self.owner, segment.file, segment.nbytes, place), places

    def take_back(self, reader: str) -> None:
        """Releases everything that was lent to a process, which must be dead."""
        with self._lock:
            for segment in self.segments:
                segment.readers[segment.readers == self._numbers[reader]] = 0

    def _free(self, nbytes: int) -> _Segment:
        """Returns the smallest segment that is large enough and that nobody reads, or a new one."""
        kept = [segment for segment, _ in self._kept]
        for segment in sorted(self.segments, key=lambda segment: segment.nbytes):
            fits = nbytes <= segment.data.nbytes <= 2 * nbytes + _HEADER
            if fits and segment not in kept and not segment.readers.any():
                return segment
        self.segments.append(_Segment(nbytes))
        return self.segments[-1]


def _same(segment: _Segment, kept: Sequence[Host], arrays: Sequence[Host]) -> bool:
    """Returns whether a kept segment can be lent for arrays: it was written from their memory."""
    before, now = ([(a.ctypes.data, a.nbytes) for a in x] for x in (kept, arrays))
    return before == now and not segment.readers.all()


_mapped: dict[str, dict[str, mmap.mmap]] = collections.defaultdict(dict)  # by owner and file


def forget(owner: str) -> None:
    """Unmaps the segments of a dead process, once nobody in this one reads them any more."""
    _mapped.pop(owner, None)


def _borrow(owner: str, file: str, nbytes: int, place: int) -> Host:
    segment = _mapped[owner].get(file)
    if segment is None:
        with open(file, "r+b") as opened:
            segment = _mapped[owner].setdefault(file, mmap.mmap(opened.fileno(), nbytes))
    memory = np.frombuffer(segment, np.uint8, offset=_HEADER)  # which is the base of its views
    memory.flags.writeable = False
    readers = np.frombuffer(segment, np.uint32, _HEADER // 4)
    weakref.finalize(memory, readers.__setitem__, place, 0).atexit = False
    return memory
