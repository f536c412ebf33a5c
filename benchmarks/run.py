"""Runs the benchmarks, prints tables, writes JSON.

python -m benchmarks.run [--only=threads,virtual,engine,store,peers] [--rounds=7] [--out=DIR]
"""

from __future__ import annotations

import argparse
import importlib
import sys

import rich.console

from dbjax.runtime.memory import keep_freed_memory
from dbjax.workdir import prepare, write_json
from dbjax.workdir.origin import commit, host, versions

PARTS = ("threads", "virtual", "engine", "store", "peers")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="of each case; default: %(default)s")
    parser.add_argument("--out", default="runs/benchmarks", help="folder; default: %(default)s")
    chosen = parser.parse_args(arguments)
    parts = chosen.only.split(",")
    for part in parts:
        if part not in PARTS:
            parser.error(f"--only: no part {part!r}; there are {', '.join(PARTS)}")
    if chosen.rounds < 1:
        parser.error(f"--rounds={chosen.rounds} must be at least 1")
    keep_freed_memory()
    console = rich.console.Console(width=None if sys.stdout.isatty() else 120)
    directory = prepare(chosen.out)
    for part in parts:
        measured = importlib.import_module(f"benchmarks.{part}").run(chosen.rounds)
        for one in measured:
            one.show(console)
        about = {"versions": versions(), "commit": commit(), "host": host()}
        found = {"measured": [one.plain() for one in measured]}
        write_json(directory / f"{part}.json", found | about)
    console.print(f"written to {directory}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
