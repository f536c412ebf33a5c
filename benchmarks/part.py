"""Runs one part of the benchmarks in this process; `benchmarks.run` starts it for each part."""

from __future__ import annotations

import importlib
import os
import sys

import rich.console

from dbjax.files import prepare, write_json
from dbjax.run_dir.provenance import commit, host, versions


def one_part(part: str, rounds: int, directory: str) -> None:
    """Measures a part, prints its tables, and writes PART.json.

    Args:
      part: the name of the module in `benchmarks`.
      rounds: the number of measurements of each case.
      directory: the folder to write to.
    """
    path = prepare(directory) / f"{part}.json"
    measured = importlib.import_module(f"benchmarks.{part}").run(rounds)
    console = rich.console.Console(width=None if sys.stdout.isatty() else 120)
    for one in measured:
        one.show(console)
    about = {"versions": versions(), "commit": commit(), "host": host(), "allocator": _allocator()}
    write_json(path, {"measured": [one.plain() for one in measured]} | about)
    console.print(f"written to {path}\n", soft_wrap=True)


def _allocator() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}


if __name__ == "__main__":
    one_part(sys.argv[1], int(sys.argv[2]), sys.argv[3])
