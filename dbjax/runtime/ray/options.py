"""Options of the Ray runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import final

from dbjax.arguments import require_fields, require_positive
from dbjax.runtime.node_names import NodeKind, kind_of

START_S = 120.0  # how long a process on any machine may take to start; each imports jax


@final
@dataclasses.dataclass(frozen=True)
class RayOptions:
    """Where the processes of a run are placed, and which resources each of them asks for.

    Attributes:
      address: the Ray cluster. "local" starts one on this machine, for this run only. "auto" uses
        the cluster to which this machine belongs (or which $RAY_ADDRESS names); if there is none,
        it logs a warning and does the same as "local". "HOST:PORT" uses the cluster of that head
        node. A program that has called `ray.init` itself uses the cluster that it chose.
      cpus: the number of logical CPUs that every process asks for. They limit how many processes
        are placed on a machine, not how many cores a process uses: with the default, ten processes
        fit on a core.
      replica_cpus: the number of logical CPUs for a process named "replica/..."; None: `cpus`.
      replica_gpus: the number of GPUs for a process named "replica/..."; others get none.
      timeout_s: the timeout for reaching the cluster and for placing the processes, in seconds.
      hang_s: how long a process may give no sign of life, in seconds, until it is killed and
        started again.
      wire_dtype: the dtype in which float32 arrays travel between replicas and shards, "float32" or
        "bfloat16", which halves the bytes and rounds parameters and gradients.
      env: environment variables of every process; the values are strings.

    Raises:
      ValueError: an attribute has a wrong value.
    """

    address: str = "local"
    cpus: float = 0.1
    replica_cpus: float | None = None
    replica_gpus: float = 0.0
    timeout_s: float = 15.0
    hang_s: float = 30.0
    wire_dtype: str = "float32"
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        require_fields("ray", self)
        if self.address not in ("auto", "local") and not _is_host_and_port(self.address):
            raise ValueError(f"ray.address={self.address!r} must be local, auto or HOST:PORT")
        for name in ("cpus", "replica_cpus", "replica_gpus"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"ray.{name}={value} must not be negative")
        require_positive("ray.timeout_s", self.timeout_s)
        require_positive("ray.hang_s", self.hang_s)
        if self.wire_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"ray.wire_dtype={self.wire_dtype!r} must be float32 or bfloat16")

    def resources(self, name: str) -> dict[str, float]:
        """Returns the resources for which the process of a node asks, by Ray's names."""
        if kind_of(name) is not NodeKind.REPLICA:
            return {"CPU": self.cpus}
        cpus = self.cpus if self.replica_cpus is None else self.replica_cpus
        return {"CPU": cpus} | ({"GPU": self.replica_gpus} if self.replica_gpus else {})


def _is_host_and_port(address: str) -> bool:
    host, colon, port = address.rpartition(":")
    return bool(host and colon) and port.isdigit()
