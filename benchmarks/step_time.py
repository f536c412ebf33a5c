"""Times one training program in a process of its own.

For each line on its standard input, a number of steps, the process prints the time of a step.
`model_parallel` starts one process for each combination of cores and devices, because both must be
set before JAX starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.measure import Case
from dbjax.runtime.step_time import Phase, PhasedStep

NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {  # -> config, fields, batch size
    "speech 42 M": ("SpeechConfig", {}, 100),
    "small vision": (
        "VisionConfig",
        {"image": 64, "classes": 1000, "units": 8, "patch": 7, "last_pool": 9},
        16,
    ),
}


class Child:
    """A process that takes training steps on request.

    Args:
      network: a key of `NETWORKS`.
      cores: the numbers of the cores that the process may use.
      devices: the number of JAX devices that the network is sharded over.
      how: how to shard the network; None: the model's default.

    Attributes:
      step: the costs of a step.
      exchange: "latency_s" and "bandwidth_bytes_per_s" between the devices; empty for one device.
    """

    def __init__(
        self, network: str, cores: tuple[int, ...], devices: int = 1, how: str | None = None
    ) -> None:
        order = json.dumps({"network": network, "cores": cores, "devices": devices, "how": how})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.step_time", order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        about = self._answer()
        phases = tuple(Phase(**phase) for phase in about.pop("phases"))
        self.step = PhasedStep(about.pop("machines"), phases)
        self.exchange: dict[str, float] = about

    def begin(self, steps: int) -> None:
        """Starts to take steps; returns at once."""
        assert self._process.stdin is not None
        print(steps, file=self._process.stdin, flush=True)

    def end(self) -> float:
        """Waits for the steps; returns the median milliseconds of a step."""
        return float(self._answer()["step_ms"])

    def case(self, steps: int) -> Case:
        """A case: the median milliseconds of a step."""

        def measure() -> float:
            self.begin(steps)
            return self.end()

        return measure

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a measuring process ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


@contextlib.contextmanager
def children(**kinds: tuple[Any, ...]) -> Iterator[dict[str, Child]]:
    """Starts a `Child` for each tuple of arguments; ends them all when the context closes."""
    found: dict[str, Child] = {}
    try:
        for name, arguments in kinds.items():
            found[name] = Child(*arguments)
        yield found
    finally:
        for child in found.values():
            child.close()


def main(order: dict[str, Any]) -> None:
    """The child process: reports the costs of a step, then takes steps on request.

    Args:
      order: the arguments of `Child`.
    """
    os.sched_setaffinity(0, order["cores"])
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    import dbjax.models
    from dbjax.costs.program import costs_of
    from dbjax.costs.speedup import phased_step
    from dbjax.models import functional

    jax.config.update("jax_num_cpu_devices", order["devices"])
    name, fields, batch_size = NETWORKS[order["network"]]
    config: functional.Config = getattr(dbjax.models, name)(**fields)
    sharding = config.sharding(order["devices"], order["how"])
    shapes = jax.eval_shape(lambda: functional.init(config, 0))
    mesh = sharding.mesh(jax.devices())
    abstract = sharding.abstract(shapes, mesh)
    params = jax.tree.map(lambda p: jax.device_put(jnp.full(p.shape, 0.01), p.sharding), abstract)
    random = np.random.default_rng(0)
    inputs = random.normal(size=(batch_size, config.inputs)).astype(np.float32)
    everywhere = NamedSharding(mesh, PartitionSpec())
    batch = jax.device_put((inputs, np.zeros(batch_size, np.int32)), everywhere)
    step = sharding.value_and_grad(shapes, mesh).lower(params, batch).compile()
    about = dataclasses.asdict(phased_step(costs_of(step)))
    if order["devices"] > 1:
        about |= exchange(mesh)
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            begin = time.perf_counter()
            jax.block_until_ready(step(params, batch))
            times.append(time.perf_counter() - begin)
        print(json.dumps({"step_ms": 1e3 * float(np.median(times))}), flush=True)


def exchange(mesh: Any) -> dict[str, float]:
    """Measures the latency and bandwidth of all-gathers, from a small and a large one."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    spec = PartitionSpec(mesh.axis_names)
    together = jax.jit(
        jax.shard_map(
            # 16 in a row, so that starting the program is a small part of the time.
            lambda x: sum(
                jax.lax.all_gather(x + i, mesh.axis_names, tiled=True)[: x.size] for i in range(16)
            ),
            mesh=mesh,
            in_specs=spec,
            out_specs=spec,
        )
    )

    def seconds(count: int) -> float:
        x = jax.device_put(jnp.zeros(count * mesh.size), NamedSharding(mesh, spec))
        times = []
        for _ in range(30):
            begin = time.perf_counter()
            jax.block_until_ready(together(x))
            times.append(time.perf_counter() - begin)
        return float(np.median(times[5:])) / 16

    small, large = 256, 128_000
    small_s, large_s = seconds(small), seconds(large)
    slope = max(large_s - small_s, 1e-9) / (4 * (large - small) * (mesh.size - 1))
    return {"latency_s": small_s, "bandwidth_bytes_per_s": 1 / slope}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
