"""Runs that are killed at some moment and started again, against one that never was.

python -m tests.checkpoint.killed DIRECTORY POINTS SIGNAL: prints what came of each, as JSON. Each
process is a fork of this one, which has imported everything and started nothing.
"""

import json
import math
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from experiments import run

ARGUMENTS = [
    "--config=configs/quickstart.py:smoke", "--config.checkpoint.every_s=0.3",
    "--config.evaluations=7", "--config.options.replicas=4", "--config.options.shards=2",
    "--config.options.shard_backups=1", "--config.options.overlap=True",
    "--config.options.n_fetch=2",
    "--config.cluster.failures=({'node': 'shard/0', 'at_s': 1.1, 'back_s': 1.6},)",
]  # fmt: skip
OTHER = "--config.data_seed=1"


def started(workdir, *more):
    """A process that runs it; its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        code = run.main([*ARGUMENTS, *more, f"--workdir={workdir}"])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(child):
    """Its exit code, negative for a signal, or None."""
    done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def one(workdir, *more, lines=math.inf, after_s=0.0, number=0):
    """A process; its exit code.

    It is sent a signal some time after it wrote that many lines of metrics.
    """
    child, begin_s = started(workdir, *more), math.inf
    while (code := ended(child)) is None:
        time.sleep(0.002)
        if begin_s == math.inf and written(workdir) >= lines:
            begin_s = time.monotonic()
        if time.monotonic() - begin_s >= after_s:
            os.kill(child, number)
            lines, begin_s = math.inf, math.inf
    return code


def written(workdir):
    try:
        return (workdir / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def left(workdir):
    """What must be the same."""
    summary = json.loads((workdir / "summary.json").read_text())
    config = summary.pop("config")
    del summary["wall_s"], summary["executor"], config["data_seed"]
    return (workdir / "metrics.jsonl").read_bytes(), summary


def point(directory, i, draws, number, expected):
    """Kills a run at some moment, or asks it to end while it runs, and starts it again."""
    workdir, lines, after_s = directory / str(i), draws.randrange(9), draws.uniform(0.0, 0.3)
    if number == signal.SIGTERM:
        lines, after_s = 2 + lines // 3, 0.0
    code = one(workdir, lines=lines, after_s=after_s, number=number)
    checkpoints = [p for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
    again = one(workdir) if code else 0
    return {"code": code, "again": again, "checkpoints": len(checkpoints),
            "same": left(workdir) == expected}  # fmt: skip


def main(directory, points, number):
    directory, draws = Path(directory), random.Random(0)
    whole, other = directory / "whole", directory / "other"
    one(whole)
    one(other, OTHER)
    expected = left(whole)
    found = [point(directory, i, draws, int(number), expected) for i in range(int(points))]
    print(json.dumps({"points": found, "other": left(other) == expected}))


if __name__ == "__main__":
    main(*sys.argv[1:])
