"""The cluster, the configuration and the options of a case."""

from __future__ import annotations

import functools
import math
from typing import Any

import dbjax
from dbjax import Failure, Link, Machine, Outage
from dbjax.algorithms import downpour, sandblaster, sgd
from dbjax.checkpoint.manager import Every
from dbjax.optim import Lbfgs, Stops
from tests.simulation.case import Case
from tests.simulation.problems import BOWL, COUNTED, RULE

COMPUTE_S = 0.1


def run(case: Case, **given: Any) -> dbjax.Result:
    """Runs a case on the engine, since a compiled run would call the store without values first.

    Raises:
      KeyboardInterrupt: a signal has ended the run early, so its numbers say nothing.
    """
    given = {"executor": "engine", **given}
    result = dbjax.run(task(case), config(case), cluster=cluster(case), **given)
    if by := result.summary["interrupted"]:
        raise KeyboardInterrupt(by)
    return result


def task(case: Case) -> dbjax.Task:
    return BOWL if case.method == "sandblaster" else COUNTED


def config(case: Case) -> Any:
    draws = case.draws("options")
    given: dict[str, Any] = {
        "replicas": case.replicas,
        "shards": case.shards,
        "shard_backups": case.backups,
    }
    if case.method == "sandblaster":
        return sandblaster.Config(
            Lbfgs(), Stops(0.0, -1.0), **given, steps=case.steps // 2,
            send_every=draws.choice([1, 2, 4]), prefetch=draws.choice([0, 1, 2]),
            backup_after=draws.choice([0.0, 1.0, 1.5, math.inf]),
            order=draws.choice(["free", "fixed"]), sample=draws.choice([1, 1, 0.5]),
        )  # fmt: skip
    if case.method == "sgd":
        given["replicas"] = 1 << (case.replicas - 1).bit_length()  # means are exact
        given["shards"] = case.shards if case.replicas > 1 else 1
        return sgd.Config(RULE, **given, steps=case.steps)
    n_push = draws.choice([1, 1, 2, 3])
    return downpour.Config(
        RULE, **given, steps=case.steps, n_fetch=draws.choice([1, 1, 2, 3]), n_push=n_push,
        overlap=draws.random() < 0.3,
        warm_start_s=draws.choice([0.0, 0.0, 0.25]),
        warm_start_updates=draws.choice([0, 0, case.steps // (2 * n_push)]),
    )  # fmt: skip


def nodes(case: Case) -> list[str]:
    """Of which each may die."""
    made = config(case)
    replicas = [f"replica/{r}" for r in range(made.replicas)]
    name = "replica" if case.method == "sgd" and made.replicas == 1 else "shard"
    shards = [f"{name}/{i}" for i in range(made.shards)]
    backups = [f"{shard}/backup" for shard in shards if case.backups]
    coordinator = ["coordinator"] if case.method == "sandblaster" else []
    return list(dict.fromkeys([*replicas, *shards, *backups, *coordinator]))


def cluster(case: Case) -> dbjax.Cluster:
    draws = case.draws("cluster")
    jitter = {"law": draws.choice(["exponential", "lognormal"])} if case.jitter else {}
    if jitter.get("law") == "lognormal":
        jitter["sigma"] = 0.5
    machine = functools.partial(
        Machine, **jitter, bandwidth_bytes_per_s=draws.choice([math.inf, math.inf, 3e3])
    )
    machines = {"replica/1": machine(speed=draws.choice([1.0, 0.1]))}
    if case.restless:
        who = draws.choice(["replica/*", "shard/*", "*/backup", "coordinator"])
        machines = {who: machine(mean_time_between_failures_s=max(4.0, 2 * usual_end_s(case)),
                                 mean_time_to_repair_s=draws.choice([1e-3, 0.2]))}  # fmt: skip
    latency_s = draws.choice([0.0, 1e-3, 0.02])
    return dbjax.Cluster(
        compute_s=COMPUTE_S, latency_s=latency_s, service_s=draws.choice([0.0, 1e-3, 0.01]),
        machine=machine(), machines=machines, failures=_failures(case, latency_s),
        outages=_outages(case), links=_links(case), seed=case.seed,
    )  # fmt: skip


def checkpoint_every(case: Case) -> Every | None:
    draws = case.draws("checkpoints")
    if case.storage:
        return Every(seconds=usual_end_s(case) / draws.choice([1.5, 3]))
    return Every(seconds=draws.choice([0.07, 0.3])) if case.checkpoints else None


def usual_end_s(case: Case) -> float:
    """About as long as it would last with nothing gone wrong."""
    portions = 12 / case.replicas if case.method == "sandblaster" else 1
    return COMPUTE_S * case.steps * portions * 1.2


def _failures(case: Case, latency_s: float) -> tuple[Failure, ...]:
    """Many at once, at any time, or right after another's death or return."""
    draws, found = case.draws("deaths"), []
    names, end_s = nodes(case), usual_end_s(case)
    favourite = draws.choice(names)
    outages = [cut for cut in _outages(case) if cut.a in names]
    for _ in range(case.deaths):
        node = draws.choice([*names, favourite, f"{favourite.removesuffix('/backup')}"])
        if case.backups and draws.random() < 0.3 and f"{favourite}/backup" in names:
            node = f"{favourite}/backup"
        at_s = draws.uniform(0, end_s)
        if outages and draws.random() < 0.4:  # a node dies while it is cut off
            cut = draws.choice(outages)
            node, at_s = cut.a, draws.uniform(cut.at_s, cut.back_s)
        elif found and draws.random() < 0.6:
            other = draws.choice(found)
            near_s = draws.choice([0.0, draws.uniform(0, 5) * (latency_s or 1e-3), 0.1])
            at_s = draws.choice([other.at_s, other.back_s]) + near_s
        last_s = draws.choice(
            [1e-4, draws.uniform(0, 5) * (latency_s or 1e-3) + 1e-6, 0.05, 0.3, 1]
        )
        found.append(Failure(node, at_s, at_s + last_s))
    return tuple(found)


def _outages(case: Case) -> tuple[Outage, ...]:
    draws, names, found = case.draws("cuts"), nodes(case), []
    backed = [n.removesuffix("/backup") for n in names if n.endswith("/backup")]
    for _ in range(case.outages):
        a, b = draws.choice(names), draws.choice([*names, "*"])
        if backed and draws.random() < 0.5:
            a = draws.choice(backed)
            b = draws.choice([f"{a}/backup", f"{a}/backup", "replica/*"])
        at_s = draws.uniform(0, usual_end_s(case))
        found.append(Outage(a, b, at_s, at_s + draws.choice([0.01, 0.1, 0.7])))
    return tuple(found)


def _links(case: Case) -> tuple[Link, ...]:
    draws, names = case.draws("links"), nodes(case)
    twice = draws.choice([0.05, 0.5]) if case.duplicates else 0.0
    found = []
    for _ in range(case.links):
        a, b, latency_s = map(draws.choice, (names, [*names, "*"], [0.0, 0.005, 0.15]))
        found.append(Link(a, b, latency_s, twice))
    return (*found, *([Link("*", "*", None, twice)] if twice else []))
