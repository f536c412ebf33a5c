"""How a run uses Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import final

from dbjax.arguments import require_fields, require_positive
from dbjax.runtime.node_names import NodeKind, kind_of


@final
@dataclasses.dataclass(frozen=True)
class RayOptions:
    """Where processes are placed, and what each of them asks for.

    Attributes:
      address: "local": a cluster of this machine, for this run only; "auto": the cluster that
        this machine belongs to (or $RAY_ADDRESS names), and with a warning as "local" where
        there is none; "HOST:PORT": the cluster of that head node. A program that has called
        `ray.init` itself runs on the cluster it chose.
      cpus: logical CPUs that every process asks for. They limit how many processes are placed
        on a machine, not how many cores one uses: with the default ten fit on a core.
      replica_cpus: of a process named replica/...; None: as the others.
      replica_gpus: GPUs of a process named replica/...; the others get none.
      timeout_s: for reaching the cluster, and for placing the processes.
      env: environment variables of every process, as text.
    """

    address: str = "local"
    cpus: float = 0.1
    replica_cpus: float | None = None
    replica_gpus: float = 0.0
    timeout_s: float = 15.0
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        require_fields("ray", self)
        if self.address not in ("auto", "local") and not _is_host_and_port(self.address):
            raise ValueError(f"ray.address={self.address!r} is not local, auto or HOST:PORT")
        for name in ("cpus", "replica_cpus", "replica_gpus"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"ray.{name}={value} must not be negative")
        require_positive("ray.timeout_s", self.timeout_s)

    def resources(self, name: str) -> dict[str, float]:
        """What the process of a node asks for."""
        if kind_of(name) is not NodeKind.REPLICA:
            return {"CPU": self.cpus}
        cpus = self.cpus if self.replica_cpus is None else self.replica_cpus
        return {"CPU": cpus} | ({"GPU": self.replica_gpus} if self.replica_gpus else {})


def _is_host_and_port(address: str) -> bool:
    host, colon, port = address.rpartition(":")
    return bool(host and colon) and port.isdigit()
