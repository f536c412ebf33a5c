"""Plants faults in a copy of this checkout, one at a time, and says which ones its tests notice.

python -m tests.planted_faults [--list] [--only TEXT ...] [--skip-baseline] [--timeout-s N]

A fault is a small replacement of text in one file (`tests/planted_faults.toml`), with the files of
tests that should fail where it is planted. This is no part of the suite. The exit code is 0 if at
least 95 % of the faults are noticed, else 1; 2 if a fault no longer applies, or if those tests fail
with no fault planted.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_suffix(".toml")
LEAST = 0.95  # of all faults
_LEFT_OUT = (".*", "__pycache__", "*.egg-info", "build", "results", "runs")


class Fault(NamedTuple):
    """A small replacement of text, and the tests that should fail where it is planted."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def faults() -> list[Fault]:
    """Those of the table."""
    table = tomllib.loads(TABLE.read_text())
    return [
        Fault(row["name"], file, row["old"], row["new"], tuple(f"tests/{t}" for t in row["tests"]))
        for file, rows in table.items()
        for row in rows
    ]


class Verdict(NamedTuple):
    """What came of one fault.

    Attributes:
      kind: "noticed", "not noticed", "no longer applies".
      said: the test that failed, or what is wrong.
    """

    kind: str
    said: str
    took_s: float = 0.0


class Checkout:
    """A copy of this checkout in a folder of its own.

    Args:
      timeout_s: tests that take longer are ended; a fault may well be a loop without end.
    """

    def __init__(self, folder: Path, timeout_s: float) -> None:
        self.root, self._timeout_s = folder / "checkout", timeout_s
        here = Path(__file__).parents[1]
        shutil.copytree(here, self.root, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        (self.root / "results").mkdir()  # configs and figures look there
        found = self._python("-c", "import dbjax; print(dbjax.__file__)").stdout.strip()
        if not found.startswith(str(self.root)):
            raise RuntimeError(f"the copy's tests would test {found}")

    def planted(self, fault: Fault) -> Verdict:
        """Plants a fault, runs its tests, and takes it out again."""
        path = self.root / fault.file
        text = path.read_text() if path.exists() else ""
        if (count := text.count(fault.old)) != 1:
            return Verdict("no longer applies", f"its text is {count} times in {fault.file}")
        path.write_text(text.replace(fault.old, fault.new))
        try:
            return self._tested(fault)
        finally:
            path.write_text(text)

    def failing(self, tests: Sequence[str]) -> str:
        """What fails of these tests; empty: nothing."""
        done = self._python("-m", "pytest", "-q", *tests)
        return "" if done.returncode == 0 else _first_failure(done.stdout) or done.stdout[-500:]

    def _tested(self, fault: Fault) -> Verdict:
        begin = time.monotonic()
        try:
            done = self._python("-m", "pytest", "-q", "-x", *fault.tests)
        except subprocess.TimeoutExpired:
            return Verdict("noticed", "it takes for ever", time.monotonic() - begin)
        took_s = time.monotonic() - begin
        if done.returncode == 0:
            return Verdict("not noticed", " ".join(fault.tests), took_s)
        if done.returncode != 1 or (failed := _first_failure(done.stdout)) is None:
            return Verdict("no longer applies", f"its tests do not run: {done.stdout[-300:]}")
        return Verdict("noticed", failed, took_s)

    def _python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-B", *arguments],
            cwd=self.root,
            env=os.environ | {"PYTHONPATH": str(self.root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=self._timeout_s,
        )


def _first_failure(output: str) -> str | None:
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return found[1] if found else None


def run(chosen: Sequence[Fault], *, timeout_s: float, baseline: bool) -> int:
    """Plants them one after the other; returns the exit code."""
    verdicts: dict[str, Verdict] = {}
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        checkout = Checkout(Path(folder), timeout_s)
        tests = sorted({test for fault in chosen for test in fault.tests})
        if baseline and (failing := checkout.failing(tests)):
            print(f"with no fault planted this fails: {failing}")
            return 2
        for fault in chosen:
            verdict = verdicts[fault.name] = checkout.planted(fault)
            print(
                f"{verdict.kind:18} {fault.name}  [{verdict.took_s:.0f} s: {verdict.said}]",
                flush=True,
            )
    kinds = [verdict.kind for verdict in verdicts.values()]
    noticed, stale = kinds.count("noticed"), kinds.count("no longer applies")
    print(
        f"{noticed} of {len(kinds)} noticed ({noticed / len(kinds):.1%}), {stale} no longer apply"
    )
    if stale:
        return 2
    return int(noticed < LEAST * len(kinds))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.planted_faults", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--list", action="store_true", help="names the faults, and plants none")
    add("--only", action="append", default=[], metavar="TEXT", help="faults with this in the name")
    add("--skip-baseline", action="store_true", help="does not run the tests without a fault first")
    add("--timeout-s", type=float, default=900.0, help="for the tests of one fault")
    given = parser.parse_args(arguments)
    chosen = [f for f in faults() if not given.only or any(text in f.name for text in given.only)]
    if not chosen:
        parser.error(f"no fault has {' or '.join(given.only)} in its name; see --list")
    if given.list:
        for fault in chosen:
            print(f"{fault.name}\n    {fault.file}: {' '.join(fault.tests)}")
        return 0
    return run(chosen, timeout_s=given.timeout_s, baseline=not given.skip_baseline)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
