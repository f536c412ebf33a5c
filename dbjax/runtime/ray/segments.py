"""Shared memory of the processes on one machine: one process writes it, others read it in place.

Ray's object store does the same for any object, but touches fresh pages for each. Here, memory is
written again once its reader has released it. A segment begins with the number of the loan. The
reader sets it to 0 when it needs the segment no more, and tells nobody else.
"""

from __future__ import annotations

import collections
import itertools
import mmap
import os
import secrets
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import numpy as np

Host = np.ndarray[Any, Any]
SHARES = sys.platform == "linux"  # memory without a name, which is freed with its last process
_HEADER = 4096  # the bytes before the data, of which the number of the loan needs 8
_ALIGNMENT = 64  # bytes; XLA needs it to use memory in place


class Lease(NamedTuple):
    """The right to read a segment. Unpickling it gives the bytes of the segment.

    They are released when the unpickled array and all views of it have been collected.
    """

    owner: str  # the arena
    file: str  # the path at which the segment can be opened
    inode: int  # of the file; another process may have the same path later
    nbytes: int
    number: int  # of the loan

    def __reduce__(self) -> Any:
        return _borrow, tuple(self)


@final
class _Segment:
    def __init__(self, nbytes: int) -> None:
        handle = os.memfd_create("dbjax")
        self.file = f"/proc/{os.getpid()}/fd/{handle}"
        self.nbytes = _HEADER + -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.inode = os.fstat(handle).st_ino
        os.ftruncate(handle, self.nbytes)
        memory = np.frombuffer(mmap.mmap(handle, 0), np.uint8)
        self.loan, self.data = memory[:8].view(np.uint64), memory[_HEADER:]
        self.reader = ""  # to whom it was lent last
        self.written = True  # whether all of that is in it


@final
class Arena:
    """The segments that this process writes."""

    def __init__(self) -> None:
        self.owner = secrets.token_hex(8)  # a name that no other arena has
        self.segments: list[_Segment] = []
        self._lock = threading.Lock()
        self._loans = itertools.count(1)
        self._dead: set[str] = set()  # readers

    def lend(self, reader: str, arrays: Sequence[Host]) -> tuple[Lease, list[tuple[int, int]]]:
        """Writes arrays of bytes to a segment, and lends it to the process of that name.

        Returns:
          The lease, and where each array begins and ends.
        """
        sizes = (-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays)
        *begins, nbytes = itertools.accumulate(sizes, initial=0)
        places = [(i, i + array.nbytes) for i, array in zip(begins, arrays, strict=True)]
        with self._lock:
            segment, number = self._free(nbytes), next(self._loans)
            segment.loan[0], segment.reader, segment.written = number, reader, False
        for array, (begin, end) in zip(arrays, places, strict=True):
            np.copyto(segment.data[begin:end], array)
        with self._lock:
            segment.written = True
            self._release_dead()
        return Lease(self.owner, segment.file, segment.inode, segment.nbytes, number), places

    def take_back(self, reader: str) -> None:
        """Releases everything that was or will be lent to a process, which must be dead."""
        with self._lock:
            self._dead.add(reader)
            self._release_dead()

    def _release_dead(self) -> None:
        for segment in self.segments:
            if segment.written and segment.reader in self._dead:
                segment.loan[0] = 0

    def _free(self, nbytes: int) -> _Segment:
        """Returns the smallest segment that is large enough and that nobody reads, or a new one."""
        for segment in sorted(self.segments, key=lambda segment: segment.nbytes):
            if nbytes <= segment.data.nbytes <= 2 * nbytes + _HEADER and not segment.loan[0]:
                return segment
        self.segments.append(_Segment(nbytes))
        return self.segments[-1]


_mapped: dict[str, dict[str, mmap.mmap]] = collections.defaultdict(dict)  # by owner and file


def forget(owner: str) -> None:
    """Unmaps the segments of a dead process, once nobody in this one reads them any more."""
    _mapped.pop(owner, None)


def _borrow(owner: str, file: str, inode: int, nbytes: int, number: int) -> Host:
    segment = _mapped[owner].get(file)
    if segment is None:
        with open(file, "r+b") as opened:
            if os.fstat(opened.fileno()).st_ino != inode:
                raise FileNotFoundError(f"the process that wrote {file} has ended")
            segment = _mapped[owner].setdefault(file, mmap.mmap(opened.fileno(), nbytes))
    memory = np.frombuffer(segment, np.uint8, offset=_HEADER)  # which is the base of its views
    memory.flags.writeable = False
    loan = np.frombuffer(segment, np.uint64, 1)
    weakref.finalize(memory, _release, loan, number).atexit = False
    return memory


def _release(loan: Host, number: int) -> None:
    """Ends a loan, unless it was taken back and the segment has been lent anew."""
    if loan[0] == number:
        loan[0] = 0
