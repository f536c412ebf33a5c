"""Replays a case: `python -m tests.simulation.replay --seed=123`, and other knobs of `Case`."""

from __future__ import annotations

import argparse
import ast
import sys

from tests.simulation.book import Violation
from tests.simulation.case import CHOICES, Case, case_of
from tests.simulation.clusters import cluster, config
from tests.simulation.simulate import check_deterministic, simulate


def parsed(arguments: list[str]) -> Case:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.replay")
    parser.add_argument("--seed", type=int, required=True)
    for name in CHOICES:
        parser.add_argument(f"--{name}", type=str if name == "method" else ast.literal_eval)
    given = {k: v for k, v in vars(parser.parse_args(arguments)).items() if v is not None}
    return case_of(**given)


def main() -> None:
    case = parsed(sys.argv[1:])
    print(case, config(case), *cluster(case).failures, *cluster(case).outages, sep="\n")
    try:
        check_deterministic(case)
        ran = simulate(case)
    except Violation as violation:
        sys.exit(f"violated: {violation}")
    print(f"all holds, after {ran.result.summary['time_s']:g} s of virtual time")


if __name__ == "__main__":
    main()
