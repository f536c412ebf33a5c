"""One training program in a process of its own: a line on its standard input, a time back.

`model_parallel` starts it, once for each number of cores and devices, since both are fixed
before JAX starts.
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

NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {  # -> config, its fields, mini-batch
    "speech 42 M": ("SpeechConfig", {}, 100),
    "small vision": (
        "VisionConfig",
        {"image": 64, "classes": 1000, "units": 8, "patch": 7, "last_pool": 9},
        16,
    ),
}


class Child:
    """A process that takes steps when it is told to.

    Args:
      cores: numbers of those that it may use.
      devices: that JAX makes of them, and that the network is cut over.
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
        self.step = PhasedStep(about.pop("machines"), phases)  # what it costs
        self.exchange: dict[str, float] = about  # between its devices: latency and bandwidth

    def begin(self, steps: int) -> None:
        assert self._process.stdin is not None
        print(steps, file=self._process.stdin, flush=True)

    def end(self) -> float:
        """Milliseconds of a step."""
        return float(self._answer()["step_ms"])

    def case(self, steps: int) -> Case:
        def measure() -> float:
            self.begin(steps)
            return self.end()

        return measure

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a measuring process ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.communicate()


@contextlib.contextmanager
def children(**kinds: tuple[Any, ...]) -> Iterator[dict[str, Child]]:
    """Children by name, ended at the end."""
    found: dict[str, Child] = {}
    try:
        for name, arguments in kinds.items():
            found[name] = Child(*arguments)
        yield found
    finally:
        for child in found.values():
            child.close()


def main(order: dict[str, Any]) -> None:
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
    """Latency and bandwidth of all-gathers among the mesh's devices: a small and a large one."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    spec = PartitionSpec(mesh.axis_names)
    together = jax.jit(
        jax.shard_map(
            # 16 in turn, so that starting the program is a small part
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
