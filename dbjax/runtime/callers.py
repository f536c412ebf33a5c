"""Who calls: calls are numbered, so that each has a name that is the same on every runtime."""

from __future__ import annotations

from typing import Any, final

from dbjax.runtime.observed import Observed


@final
class Caller:
    """A main, or a service with code of its own.

    Attributes:
      node: that it runs on.
      label: names it within the run.
      observed: what it sees of time.
      calls: how many it has made.
    """

    __slots__ = ("calls", "label", "node", "observed")

    def __init__(self, node: Any, label: str, observed: Observed) -> None:
        self.node, self.label, self.calls = node, label, 0
        self.observed = observed

    def number(self) -> int:
        """Of its next call: 1, 2, 3, ..."""
        self.calls += 1
        return self.calls


def of_service(name: str) -> str:
    """The label of a service's own calls; a main may live on the same node."""
    return f"{name}.service"
