"""Synthesises utterances in several processes; their order is the same for any number of workers.

Worker w of W makes utterances w, w + W, ... and writes them to its standard output; the parent
reads from the workers in turn. The workers are plain subprocesses, because multiprocessing would
import the caller's main module again and fail if that has no `__main__` guard.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from typing import IO

import numpy as np

from dbjax.data.speech.corpus import Recording, record


def recordings(seed: int, workers: int | None = None) -> Generator[Recording, None, None]:
    """Yields utterances 0, 1, 2, ... of the corpus without end; closing it stops the workers.

    Args:
      seed: the seed of the corpus.
      workers: the number of worker processes; None: one for each CPU.

    Raises:
      ValueError: a required package is missing.
      RuntimeError: a worker failed; the message has what it wrote to its standard error.
    """
    record(seed, 0)  # if a package is missing, fails here with one line rather than in a worker
    return _recordings(seed, workers or os.cpu_count() or 1)


def _recordings(seed: int, count: int) -> Generator[Recording, None, None]:
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(_worker(seed, w, count)) for w in range(count)]
        for worker in itertools.cycle(running):
            assert worker.stdout is not None
            assert worker.stderr is not None
            try:
                yield _read(worker.stdout)
            except (EOFError, ValueError) as error:
                message = worker.stderr.read().decode(errors="replace").strip()
                raise RuntimeError(f"a speech synthesis worker failed: {message}") from error


@contextlib.contextmanager
def _worker(seed: int, first: int, stride: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", __name__, str(seed), str(first), str(stride)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _write(recording: Recording, out: IO[bytes]) -> None:
    """Writes one line of JSON followed by the bytes of the two arrays."""
    head = {
        "test": recording.test,
        "voice": recording.voice,
        "phones": recording.phones,
        "shape": recording.frames.shape,
    }
    out.write(json.dumps(head).encode() + b"\n")
    out.write(recording.frames.tobytes())
    out.write(recording.begins_s.tobytes())


def _read(source: IO[bytes]) -> Recording:
    line = source.readline()
    if not line:
        raise EOFError
    head = json.loads(line)
    rows, columns = head["shape"]
    frames = np.frombuffer(source.read(4 * rows * columns), np.float32).reshape(rows, columns)
    begins_s = np.frombuffer(source.read(4 * len(head["phones"])), np.float32)
    return Recording(head["test"], head["voice"], frames, tuple(head["phones"]), begins_s)


def _main(seed: int, first: int, stride: int) -> None:
    for number in itertools.count(first, stride):
        message = io.BytesIO()
        _write(record(seed, number), message)
        sys.stdout.buffer.write(message.getbuffer())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        _main(*map(int, sys.argv[1:]))
