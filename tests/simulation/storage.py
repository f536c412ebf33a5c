"""A case's run on a disk that fails: what is read back is whole, or a line says what is not.

The run is interrupted, or its process is killed while it writes a checkpoint. Files are damaged,
and the run is resumed. In the end it has to be the run that was never interrupted, to the bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dbjax
from dbjax.checkpoint import Checkpoints, CheckpointState
from dbjax.checkpoint.encoding import ArrayTable, bytes_of, encode
from tests.simulation.book import Violation
from tests.simulation.case import Case
from tests.simulation.clusters import checkpoint_every, run, usual_end_s
from tests.simulation.disk_faults import (
    AT_REST,
    WRITES,
    Killed,
    damage,
    failing_write,
    filled_files,
    unreadable,
)

NOT_READ = ("_CHECKPOINT_METADATA", "commit_success.txt")  # their damage may go unnoticed


def check(case: Case) -> None:
    """Runs the case on a disk that fails.

    Raises:
      Violation: what has to hold does not.
    """
    expected, draws = _told(_run(case)), case.draws("interruptions")
    ends_s = sorted(draws.uniform(0.2, 1.2) for _ in range(draws.choice([1, 1, 1, 2])))
    with tempfile.TemporaryDirectory(prefix="simulation-") as directory:
        disk = Disk(Path(directory) / "checkpoints", case)
        for end in ends_s:
            _resume(case, disk, end * usual_end_s(case))
            disk.damage()
        result = None
        while result is None:  # again if it is killed
            result = _resume(case, disk, None)
        _require(_told(result) == expected, "the resumed run is another run")
        with DiskCheckpoints(disk) as checkpoints:
            checkpoints.checked_latest()


class Disk:
    """A directory of checkpoints, and what is known of each of them.

    Attributes:
      keep: the number of checkpoints to keep.
      whole: the digest of the content of every whole checkpoint, by its number.
      damaged: the numbers of the others.
    """

    def __init__(self, directory: Path, case: Case) -> None:
        self.directory, self.draws = directory, case.draws("storage")
        self.keep, self._faults = self.draws.choice([1, 1, 2, 3]), case.storage
        self.whole: dict[int, str] = {}
        self.damaged: set[int] = set()

    def fault(self, kinds: tuple[str, ...], chance: float) -> str | None:
        """Draws one of these faults; None: nothing goes wrong, or enough has."""
        if not self._faults or self.draws.random() > chance:
            return None
        self._faults -= 1
        return self.draws.choice(kinds)

    def steps(self) -> list[int]:
        """The numbers of the checkpoints that are there, in order."""
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdecimal())

    def note(self, content: CheckpointState, fault: str | None) -> bool:
        """Takes note of what a write left; returns whether it left a checkpoint."""
        there, before = self.steps(), {*self.whole, *self.damaged}
        new = [step for step in there if step not in before]
        gone = before.difference(there)
        newer = [step for step in there if step > max(gone, default=0)]
        _require(bool(new) or fault is not None, "a checkpoint is missing though nothing failed")
        _require(not gone or len(newer) >= self.keep, f"{fault}: {gone} gone, {there} left")
        _require(fault is not None or len(there) <= self.keep, f"{there} are kept")
        self.whole |= dict.fromkeys(new, digest(content))
        self.whole = {step: made for step, made in self.whole.items() if step in there}
        self.damaged &= set(there)
        return bool(new)

    def damage(self) -> None:
        """Damages files of checkpoints, most likely of the newest."""
        while (kind := self.fault(AT_REST, 0.7)) is not None:
            there = self.steps()
            step = self.draws.choice([*there[-1:] * 2, *there]) if there else 0
            if found := filled_files(self.directory / str(step)):
                file = self.draws.choice(found)
                damage(file, kind, self.draws)
                if file.name not in NOT_READ:
                    self.damaged.add(step)
                    self.whole.pop(step, None)


class DiskCheckpoints(Checkpoints):
    """Checkpoints on such a disk; the run waits until each is written, so that runs are equal."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        super().__init__(disk.directory, keep=disk.keep)

    def save(self, content: CheckpointState, arrays: ArrayTable | None = None) -> None:
        """Writes a checkpoint; if there is none then, one line says so."""
        disk, is_there = self._disk, False
        fault = disk.fault(WRITES, 0.4)
        try:
            with warnings() as said, failing_write(disk.directory, fault, disk.draws):
                super().save(content, arrays)
                self.wait()
        finally:
            is_there = disk.note(content, fault)
        if fault != "no room":  # which is said once, not for each
            _require(len(said) == (not is_there), f"{fault}: {len(said)} lines: {said}")
        _require(all("the previous" in line for line in said), f"{fault}: {said}")

    def checked_latest(self) -> CheckpointState | None:
        """Reads the newest whole one as it was written; a line names each that is newer."""
        disk, newest = self._disk, max(self._disk.whole, default=0)
        if newest and disk.fault(("unreadable",), 0.2):
            with unreadable(disk.directory / str(newest)):
                if others := {*disk.whole} - {newest}:
                    self._require_read(max(others), {*disk.damaged, newest})
                else:
                    self._require_refused()
        return self._require_read(newest, disk.damaged)

    def _require_refused(self) -> None:
        """The only whole one cannot be read, so nothing may begin anew without it."""
        try:
            self.latest()
        except ValueError as error:
            _require(str(error).startswith("cannot read checkpoint"), f"refused: {error}")
        else:
            raise Violation("storage: a checkpoint that cannot be read is left out")

    def _require_read(self, expected: int, failed: set[int]) -> CheckpointState | None:
        disk = self._disk
        with warnings() as said:
            content = self.latest()
        number = int(content.stored.path.name) if content is not None else 0
        _require(number == expected, f"checkpoint {number} is read, not {expected}: {said}")
        if content is not None:
            _require(digest(content) == disk.whole[number], f"checkpoint {number} has changed")
        newer = sorted((step for step in failed if step > number), reverse=True)
        _require(len(said) == len(newer), f"{newer} are not whole: {said}")
        used = f"{disk.directory / str(number)} is used instead"
        for step, line in zip(newer, said, strict=True):
            end = used if number else "there is no other checkpoint"
            named = f"checkpoint {disk.directory / str(step)}" in line
            _require(named and line.endswith(end), f"{step} is not whole: {line}")
        return content


def digest(content: CheckpointState) -> str:
    """The digest of everything that a checkpoint holds."""
    arrays, exact = ArrayTable(), content.exact
    encoded = encode(dataclasses.replace(content, exact=None, stored=None), arrays)
    made = hashlib.sha256(json.dumps([encoded, exact and [exact.program, exact.nodes]]).encode())
    for array in [*arrays.values, *(exact.arrays if exact else ())]:
        made.update(f"{array.dtype}{array.shape}".encode())
        made.update(bytes_of(array))
    return made.hexdigest()


@contextlib.contextmanager
def warnings() -> Iterator[list[str]]:
    """The warnings of dbjax in the block, each a line; those of Orbax are dropped."""
    said: list[str] = []
    ours, orbax = logging.getLogger("dbjax"), logging.getLogger("absl")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    before = ours.propagate, orbax.disabled
    ours.propagate, orbax.disabled = False, True
    ours.addHandler(handler)
    try:
        yield said
    finally:
        ours.removeHandler(handler)
        ours.propagate, orbax.disabled = before
    for line in said:
        _require("\n" not in line, f"more than a line: {line}")


def _resume(case: Case, disk: Disk, until_s: float | None) -> dbjax.Result | None:
    """Goes on from the newest whole checkpoint; returns None if it is killed."""
    with DiskCheckpoints(disk) as checkpoints, contextlib.suppress(Killed):
        content = checkpoints.checked_latest()
        return _run(case, until_s=until_s, checkpoints=checkpoints, resume=content)
    return None


def _run(case: Case, **given: Any) -> dbjax.Result:
    return run(case, checkpoint_every=checkpoint_every(case), **given)


def _told(result: dbjax.Result) -> str:
    """All numbers of a run but those of the wall, and its rows.

    Rows of warnings are left out: an interrupted run has reported what went wrong when it ended, a
    whole one later. The summary has the same warnings.
    """
    summary = {k: v for k, v in result.summary.items() if k not in ("wall_s", "executor")}
    rows = [
        row | {"loss": float(row.get("loss", 0))}
        for row in result.trace.rows
        if "warnings" not in row
    ]
    return repr((summary, rows))


def _require(holds: bool, said: str) -> None:
    if not holds:
        raise Violation(f"storage: {said}")
