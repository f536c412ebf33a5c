"""(p) Push and fetch of 42 M parameters between two processes, compared with copying them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import jax
import numpy as np

from benchmarks.measure import Case, Measured, in_turn, milliseconds
from benchmarks.networks import paper
from benchmarks.store import copied
from dbjax.runtime.ray import RayOptions, ray_runtime

_TIMES = 8  # pushes and fetches of one measurement
_WARM = 8  # uncounted ones before, which touch all memory once
_LEFT_OUT = "Ray Direct Transport is left out: it moves the tensors of PyTorch only"


@final
class Mirror:
    """A service that returns what was pushed last."""

    def __init__(self, node: Any = None) -> None:
        self._arrays: Sequence[Any] = ()

    def push(self, arrays: Sequence[Any]) -> None:
        """Takes arrays in place of the last ones."""
        self._arrays = arrays

    def fetch(self) -> Sequence[Any]:
        """Returns the arrays that were pushed last."""
        return self._arrays


def exchanges_ms(push: Callable[[], Any], fetch: Callable[[], Any]) -> float:
    """Returns the median time of a push and a fetch together, in milliseconds."""
    taken = []
    for _ in range(_WARM + _TIMES):
        begin = time.perf_counter()
        push()
        fetch()
        taken.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(taken[_WARM:])


async def replica(node: Any, mirror: Any, arrays: Sequence[Any]) -> float:
    """The same as `exchanges_ms`, in a replica of dbjax; other arrays are pushed each time."""
    plus = jax.jit(lambda arrays: [array + 1 for array in arrays])
    taken = []
    for _ in range(_WARM + _TIMES):
        arrays = jax.block_until_ready(plus(arrays))
        begin = time.perf_counter()
        await mirror.call(Mirror.push, arrays)
        found = await mirror.call(Mirror.fetch)
        taken.append(1e3 * (time.perf_counter() - begin))
        del found
    return statistics.median(taken[_WARM:])


def dbjax_on_ray(arrays: Sequence[Any], options: RayOptions) -> Case:
    """A case: a replica and a shard of dbjax."""

    def case() -> float:
        runtime = ray_runtime(options)
        with contextlib.closing(runtime):
            mirror = runtime.serve("shard/0", Mirror)
            ended = runtime.spawn("replica/0", replica, mirror, list(arrays))
            runtime.run(until_s=300.0)
            taken_ms: float = ended.result()
            return taken_ms

    return case


def object_store(arrays: Sequence[Any], **options: Any) -> Case:
    """A case: an actor of Ray that is called with NumPy arrays, as Ray sends them."""
    import ray

    host = [np.asarray(array) for array in arrays]

    @functools.cache
    def made() -> Any:
        return ray.remote(Mirror).options(num_cpus=0.1, **options).remote()

    def case() -> float:
        return exchanges_ms(
            lambda: ray.get(made().push.remote(host)), lambda: ray.get(made().fetch.remote())
        )

    return case


class FlightHost:
    """An actor in whose process an Arrow Flight server runs."""

    def start(self) -> int:
        """Starts the server, and returns its port."""
        import pyarrow.flight as flight

        class Server(flight.FlightServerBase):  # type: ignore[misc]
            def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
                self.table = reader.read_all()

            def do_get(self, context: Any, ticket: Any) -> Any:
                return flight.RecordBatchStream(self.table)

        self._server = Server("grpc://127.0.0.1:0")
        return int(self._server.port)


def arrow_flight(arrays: Sequence[Any]) -> Case:
    """A case: an Arrow Flight server in another process, over TCP within this machine."""
    import pyarrow
    import pyarrow.flight as flight
    import ray

    names = [str(i) for i in range(len(arrays))]
    flat = [np.asarray(array).reshape(-1) for array in arrays]

    @functools.cache
    def made() -> tuple[Any, Any]:
        host: Any = ray.remote(FlightHost).options(num_cpus=0.1).remote()
        return host, flight.connect(f"grpc://127.0.0.1:{ray.get(host.start.remote())}")

    def push() -> None:
        batches = [pyarrow.record_batch([pyarrow.array(a)], ["a"]) for a in flat]
        writer, _ = made()[1].do_put(flight.FlightDescriptor.for_path(*names), batches[0].schema)
        for batch in batches:
            writer.write_batch(batch)
        writer.close()

    def fetch() -> Any:
        return made()[1].do_get(flight.Ticket(b"")).read_all()

    return lambda: exchanges_ms(push, fetch)


@contextlib.contextmanager
def two_machines() -> Iterator[None]:
    """A Ray cluster of two nodes on this machine: the second one has a GPU, or so it says."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(True, head_node_args={"num_cpus": 2, "object_store_memory": 4 * 10**9})
    try:
        cluster.add_node(num_cpus=1, num_gpus=2, object_store_memory=4 * 10**9)
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@contextlib.contextmanager
def one_machine() -> Iterator[None]:
    """A Ray cluster of this machine."""
    import ray

    ray.init(
        "local",
        include_dashboard=False,
        object_store_memory=6 * 10**9,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _system_config={"worker_niceness": 0},
    )
    try:
        yield
    finally:
        ray.shutdown()


def run(rounds: int) -> list[Measured]:
    """Measures part (p); see `benchmarks.run`. Without Ray it only says so."""
    if importlib.util.find_spec("ray") is None:
        nothing = {"left out": "Ray is not installed (pip install 'dbjax[ray]')"}
        return [Measured("(p) Transport", "", {}, notes=nothing)]
    warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
    params = paper().task.params
    arrays = jax.tree.leaves(params)
    apart = RayOptions(replica_gpus=1.0)
    copy = {"one copy of the parameters": milliseconds(copied(params))}
    with one_machine():
        here = copy | {
            "dbjax, shared memory": dbjax_on_ray(arrays, RayOptions()),
            "dbjax, shared memory, bfloat16": dbjax_on_ray(
                arrays, RayOptions(wire_dtype="bfloat16")
            ),
            "Ray's object store": object_store(arrays),
        }
        if importlib.util.find_spec("pyarrow") is not None:
            here["Arrow Flight"] = arrow_flight(arrays)
        title = "(p) push and fetch of 42 M parameters, two processes of a machine"
        within = in_turn(
            title, "ms", here, rounds, {"dbjax, shared memory": "<= 3"}, {"note": _LEFT_OUT}
        )
    with two_machines():
        there = copy | {
            "dbjax": dbjax_on_ray(arrays, apart),
            "dbjax, bfloat16": dbjax_on_ray(
                arrays, dataclasses.replace(apart, wire_dtype="bfloat16")
            ),
            "Ray's object store": object_store(arrays, num_gpus=1),
        }
        title = "(p) the same between two Ray nodes, which share no memory (both on this machine)"
        between = in_turn(title, "ms", there, rounds)
    return [within, between]
