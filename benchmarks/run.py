"""Runs the benchmarks, prints tables and writes JSON.

python -m benchmarks.run [--only=threads,virtual,...] [--rounds=7] [--out=DIR]

Each part runs in a process of its own. For the parts with large arrays, the allocator of that
process keeps freed memory (docs/decisions/memory.md).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from dbjax.files import prepare

KEEP_FREED_MEMORY = {  # settings of glibc, for arrays above 32 MB
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**62),
}
KEEP_FREED_SMALL = {k: v for k, v in KEEP_FREED_MEMORY.items() if k != "MALLOC_ARENA_MAX"}
PARTS: dict[str, dict[str, str]] = {
    "threads": {},
    "threads_paper": KEEP_FREED_MEMORY,
    "event_log": {},
    "virtual": {},
    "engine": {},
    "store": KEEP_FREED_MEMORY,
    "peers": KEEP_FREED_MEMORY,
    "lbfgs": {},
    "lbfgs_paper": KEEP_FREED_MEMORY,
    "sandblaster": {},
    "model_parallel": KEEP_FREED_MEMORY,
    "on_ray": KEEP_FREED_SMALL,
    "on_ray_paper": KEEP_FREED_MEMORY,
    "transport": KEEP_FREED_MEMORY,
    "sweep": {},
    "schedules": {},
    "figure4": {"NPROC": "1", "OMP_NUM_THREADS": "1"},
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", default=",".join(PARTS), help="parts to run; default: %(default)s"
    )
    parser.add_argument(
        "--rounds", type=int, default=7, help="measurements of each case; default: %(default)s"
    )
    parser.add_argument("--out", default="runs/benchmarks", help="folder; default: %(default)s")
    chosen = parser.parse_args(arguments)
    for part in chosen.only.split(","):
        if part not in PARTS:
            parser.error(f"--only: no part {part!r}; there are {', '.join(PARTS)}")
    if chosen.rounds < 1:
        parser.error(f"--rounds={chosen.rounds} must be at least 1")
    try:
        directory = prepare(chosen.out)
    except ValueError as error:
        parser.error(f"--out: {error}")
    for part in chosen.only.split(","):
        command = [
            sys.executable,
            "-m",
            "benchmarks.part",
            part,
            str(chosen.rounds),
            str(directory),
        ]
        done = subprocess.run(command, env=os.environ | PARTS[part])
        if done.returncode != 0:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
