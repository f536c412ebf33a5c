"""A case of the simulation: plain data, drawn from a seed, replayed by one command."""

from __future__ import annotations

import dataclasses
import random
from typing import Any, Literal

Method = Literal["downpour", "sgd", "sandblaster"]
CHOICES: dict[str, tuple[Any, ...]] = {  # of every knob; what is simplest comes first
    "method": ("downpour", "sandblaster", "sgd"),
    "replicas": (1, 2, 3, 4),
    "shards": (1, 2, 3),
    "backups": (0, 1),
    "steps": (4, 8, 12),
    "deaths": (0, 1, 2, 3, 5, 8),
    "outages": (0, 1, 2, 4),
    "links": (0, 1, 2),
    "duplicates": (False, True),
    "checkpoints": (False, True),
    "restless": (False, True),
    "jitter": (False, True),
    "repeats": (False, True),
    "storage": (0, 1, 2, 4),
}
FAVOURED = {
    "backups": (0, 1, 1),
    "deaths": (0, 1, 2, 2, 3, 3, 5, 8),
    "restless": (False,) * 4 + (True,),
    "storage": (0,) * 27 + (1, 2, 4),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """What is run, and how much goes wrong.

    Attributes:
      seed: of all details: times, nodes, and the method's options.
      deaths: that are scheduled; `restless`: whether machines die by themselves too.
      outages: of the network; `links`: of another latency; `duplicates`: on those or anywhere.
      checkpoints: whether there are any.
      jitter: whether computations vary in time.
      repeats: whether some pushes reach their shard twice.
      storage: faults of the disk with the checkpoints, which the run is then resumed from.
    """

    seed: int
    method: Method = "downpour"
    replicas: int = 2
    shards: int = 1
    backups: int = 0
    steps: int = 8
    deaths: int = 0
    outages: int = 0
    links: int = 0
    duplicates: bool = False
    checkpoints: bool = False
    restless: bool = False
    jitter: bool = False
    repeats: bool = False
    storage: int = 0

    def draws(self, of: str) -> random.Random:
        """For one kind of detail, so that fewer deaths leave the cuts as they are."""
        return random.Random(f"{self.seed} {of}")

    def command(self) -> str:
        """What replays it."""
        drawn = dataclasses.asdict(case_of(self.seed))
        others = {k: v for k, v in dataclasses.asdict(self).items() if v != drawn[k]}
        words = [f"--{name}={value}" for name, value in others.items()]
        return " ".join(["python -m tests.simulation.replay", f"--seed={self.seed}", *words])


def case_of(seed: int, **given: Any) -> Case:
    """The case of a seed, but for what is given."""
    draws = random.Random(seed)
    drawn = {name: draws.choice(FAVOURED.get(name, some)) for name, some in CHOICES.items()}
    return Case(seed, **drawn | given)
