"""What a network does between two nodes: outages, slow links, duplicates."""

from __future__ import annotations

import dataclasses
import fnmatch
import math

from dbjax.runtime.fields import require_fields
from dbjax.runtime.quantities import require_finite, require_probability


@dataclasses.dataclass(frozen=True)
class Outage:
    """A cut of the network between `a` and `b`, both ways, from `at_s` until it heals.

    What is sent meanwhile is held back and goes on when the cut heals, in order: nothing is lost,
    and nothing that is sent later overtakes it, as with TCP. What was sent before arrives.

    Attributes:
      a, b: node names, or patterns such as "replica/*".
    """

    a: str
    b: str
    at_s: float
    back_s: float

    def __post_init__(self) -> None:
        require_fields("Outage", self)
        if not 0 <= self.at_s < self.back_s < math.inf:
            raise ValueError(
                f"Outage between {self.a} and {self.b}: needs 0 <= at_s={self.at_s!r} < "
                f"back_s={self.back_s!r} < inf; a node that is gone for good is a Failure"
            )


@dataclasses.dataclass(frozen=True)
class Link:
    """The network between `a` and `b`, both ways, where it is another than elsewhere.

    Attributes:
      a, b: node names, or patterns such as "replica/*".
      latency_s: from the sender's card to the receiver's; None: `Cluster.latency_s`.
      duplicate_probability: chance that the network delivers a message twice. The receiver
        drops the second, which costs its card the time of a message.
    """

    a: str
    b: str
    latency_s: float | None = None
    duplicate_probability: float = 0.0

    def __post_init__(self) -> None:
        require_fields("Link", self)
        between = f"Link between {self.a} and {self.b}"
        if self.latency_s is not None:
            require_finite(f"{between}: latency_s", self.latency_s)
        require_probability(f"{between}: duplicate_probability", self.duplicate_probability)


def joins(way: Outage | Link, one: str, other: str) -> bool:
    """Whether it is between these nodes."""
    here, there = matches(way.a, one), matches(way.b, other)
    return (here and there) or (matches(way.a, other) and matches(way.b, one))


def matches(pattern: str, name: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)
