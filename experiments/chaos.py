r"""Trains twice, once undisturbed and once while nodes fail, and compares the runs.

python -m experiments.chaos --config=configs/NAME.py[:smoke] --runtime=ray|virtual \
    --workdir=DIR --kill-every=5s --for=120s [--backups=1] [--seed=0] [--config.FIELD=VALUE ...]

Defaults: --runtime=ray --kill-every=5s --for=60s --backups=1 --seed=0.

On Ray, about half of the nodes that fail are not killed: their processes stand still (SIGSTOP),
until dbjax has heard nothing of them for ray.hang_s, which is 5 s here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import ml_collections
import rich.console
import rich.table

import dbjax
from dbjax.arguments import require_positive
from dbjax.files import prepare
from dbjax.monitoring.fault_injection import Chaos, Kill, kills
from dbjax.monitoring.push_account import PushAccount, PushId, account_for_pushes
from dbjax.signals import exit_code
from experiments.command_line import command, integer, log_to_terminal, parse
from experiments.fields import REPAIR, require_effect
from experiments.folders import require_place
from experiments.replay import read_log
from experiments.run import number, run_config

_OPTIONS = ("runtime", "kill-every", "for", "backups", "seed")
_SET = {  # fields that the command itself sets -> what to do instead, or why it sets them
    "runtime": "give --runtime",
    "until_s": "give --for",
    "options.shard_backups": "give --backups",
    "event_log": "the log is always written, since it tells what became of every push",
}
_HANG_S = 5.0  # the limit for processes that hang, unless the command line sets it
_REPAIR_S = 1.0  # a virtual machine's mean time to repair, unless the config sets it
_POINTS = 2.0  # percentage points of accuracy by which the disturbed run may be worse


def seconds(text: str, flag: str) -> float:
    """Parses a duration such as 5, 5s, 2m or 1h into seconds.

    Args:
      text: the duration; without a unit it is in seconds.
      flag: the name of its flag in errors.

    Raises:
      ValueError: the text is not a duration, or is not above 0.
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        found = float(number) * units[unit]
    except ValueError as error:
        raise ValueError(f"--{flag}={text} must be a time, such as 5s or 2m") from error
    require_positive(f"--{flag}", found)
    return found


def configured(
    config: ml_collections.ConfigDict, runtime: str, for_s: float, backups: int
) -> ml_collections.ConfigDict:
    """Returns a copy of the config with the settings of both runs.

    Args:
      config: the config of the file and the command line.
      runtime: "ray" or "virtual".
      for_s: the length of each run, in seconds of its clock.
      backups: the number of backups of each shard.
    """
    config = config.copy_and_resolve_references()
    config.runtime, config.until_s, config.event_log = runtime, for_s, True
    with config.options.unlocked():
        config.options.shard_backups = backups
    machine = config.cluster.machine
    if runtime == "virtual" and math.isinf(machine.mean_time_to_repair_s):
        machine.mean_time_to_repair_s = _REPAIR_S
    return config


def require_free(changes: Mapping[str, str]) -> None:
    """Raises ValueError if the command line changes a field that this command sets itself."""
    for path, instead in _SET.items():
        if path in changes:
            raise ValueError(f"--config.{path}={changes[path]} has no effect: {instead}")


def table_of(found: Sequence[Kill]) -> rich.table.Table:
    """A table of the failures and recoveries of replicas and of shards."""
    table = rich.table.Table(title="failures", title_justify="left")
    for column in ("", "failures", "recoveries", "median s to recover", "longest"):
        table.add_column(column, justify="left" if not column else "right")
    for kind, prefix, hung in (
        ("replicas that were killed", "replica/", False),
        ("replicas that hung", "replica/", True),
        ("shards that were killed", "shard/", False),
        ("shards that hung", "shard/", True),
    ):
        of_kind = [k for k in found if k.node.startswith(prefix) and k.hung is hung]
        if hung and not of_kind:
            continue
        back = [kill.back_after_s for kill in of_kind if kill.back_after_s < float("inf")]
        times = (f"{statistics.median(back):.2f}", f"{max(back):.2f}") if back else ("-", "-")
        table.add_row(kind, str(len(of_kind)), str(len(back)), *times)
    return table


def compared(calm: dbjax.Result, disturbed: dbjax.Result) -> rich.table.Table:
    """A table with the main numbers of both runs side by side."""
    table = rich.table.Table("", "undisturbed", "disturbed", title="runs", title_justify="left")
    names = ("time_s", "updates", "test_accuracy", "lost_pushes", "repeated_pushes", "deaths")
    for name in names:
        if name in calm.summary:
            cells = [number(one.summary[name]) for one in (calm, disturbed)]
            table.add_row(name.replace("_", " "), *cells)
    return table


def verdict(
    calm: dbjax.Result, disturbed: dbjax.Result, account: PushAccount, backups: int
) -> list[str]:
    """Lists what went wrong; empty if the disturbed run passed.

    A run passes if its accuracy is at most two percentage points worse, no acknowledged push was
    lost (with backups), no push was applied twice, and at least one node was killed.
    """
    wrong = []
    if "test_accuracy" in calm.summary:
        points = 100 * (calm.summary["test_accuracy"] - disturbed.summary["test_accuracy"])
        if points > _POINTS:
            wrong.append(f"the disturbed run is {points:.1f} points less accurate")
    if backups and account.lost:
        wrong.append(f"{_counted(account.lost)} acknowledged pushes were lost")
    if account.doubled:
        wrong.append(f"{_counted(account.doubled)} pushes were applied twice")
    if not kills(disturbed.trace.rows):
        wrong.append("no node was killed: --for is too short for --kill-every")
    return wrong


def _counted(pushes: Sequence[PushId]) -> str:
    first = pushes[0]
    return f"{len(pushes):,} (such as {first.replica}'s number {first.sequence} to {first.shard})"


def _passed(account: PushAccount) -> str:
    """Says what became of the pushes of a run that passed."""
    if not account.acknowledged:
        return "the method makes no pushes that could be lost"
    if account.lost:
        lost = f"{len(account.lost):,} acknowledged pushes were lost"
        return f"{lost}, which can happen without backups, and none was applied twice"
    return (
        f"no acknowledged push was lost and none was applied twice: all {account.acknowledged:,} "
        "are in the final parameters once, by the event log"
    )


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code, 1 if the disturbed run did not pass."""
    if {"--help", "-h"} & set(arguments):
        print((__doc__ or "").strip())
        return 0
    chosen = parse(arguments, _OPTIONS, asked=(REPAIR,))
    options, (config, folder) = chosen.options, chosen.config_and_workdir()
    require_free(chosen.changes)
    every_s = seconds(options.get("kill-every", "5s"), "kill-every")
    for_s = seconds(options.get("for", "60s"), "for")
    backups, seed = integer(options, "backups", 1, least=0), integer(options, "seed", 0, least=0)
    runtime = options.get("runtime", "ray")
    if runtime not in ("ray", "virtual"):
        raise ValueError(f"--runtime={runtime} must be ray or virtual: threads cannot be killed")
    if runtime == "ray" and "ray.hang_s" not in chosen.changes:
        config.ray.hang_s = _HANG_S
    config = configured(config, runtime, for_s, backups)
    asked = {REPAIR} if runtime == "virtual" else set()
    require_effect(config, set(chosen.changes) - asked)
    require_place(folder, "runs")
    workdir = prepare(folder)
    log_to_terminal()
    calm = run_config(config, workdir / "undisturbed", "undisturbed")
    if calm.summary["interrupted"]:
        return exit_code(calm.summary["interrupted"])
    chaos = Chaos(every_s, seed, hangs=runtime == "ray")
    disturbed = run_config(config, workdir / "disturbed", "disturbed", background=chaos)
    if disturbed.summary["interrupted"]:
        return exit_code(disturbed.summary["interrupted"])
    console = rich.console.Console()
    console.print(table_of(kills(disturbed.trace.rows)))
    console.print(compared(calm, disturbed))
    account = account_for_pushes(read_log(workdir / "disturbed"))
    wrong = verdict(calm, disturbed, account, backups)
    console.print("; ".join(wrong) or _passed(account), soft_wrap=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    command(main)
