"""Placement of the processes of a run on a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import signal
import socket
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, final

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dbjax.runtime.ray.options import RayOptions
from dbjax.runtime.ray.process import Process, Settings

_LOG = logging.getLogger(__name__)


@final
class Placement:
    """The processes of a run, one for every node, spread over the machines as evenly as possible.

    Args:
      options: the options of the run.
      names: the names of the nodes.

    Raises:
      ValueError: the cluster cannot be reached.
    """

    def __init__(self, options: RayOptions, names: Sequence[str]) -> None:
        self._options, self._names = options, names
        self._bundles = [options.resources(name) for name in names]
        self._needed = {kind: sum(bundle.get(kind, 0.0) for bundle in self._bundles)
                        for kind in ("CPU", "GPU")}  # fmt: skip
        self._group: Any = None
        self._joined = not ray.is_initialized()
        if self._joined:
            with _signals_kept(), warnings.catch_warnings():
                # jax warns of forks, but the programs that Ray forks here do not use jax.
                warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
                try:
                    _join(options, self._needed["CPU"])
                except BaseException:
                    ray.shutdown()
                    raise

    def reserve(self) -> None:
        """Reserves the resources of all processes at once.

        Raises:
          ValueError: the cluster has too few resources, or does not grant them in `timeout_s`.
        """
        there_are = ray.cluster_resources()
        if any(n > there_are.get(kind, 0.0) + 1e-6 for kind, n in self._needed.items()):
            raise ValueError(
                f"{len(self._bundles)} processes need {_amounts(self._needed)}, but the cluster "
                f"has {_amounts(there_are)}: add machines, or lower ray.cpus, ray.replica_cpus, "
                "ray.replica_gpus or the number of replicas"
            )
        bundles = [{k: v for k, v in b.items() if v} or {"CPU": 0.001} for b in self._bundles]
        self._group = placement_group(bundles, strategy="SPREAD")
        if not self._group.wait(self._options.timeout_s):
            raise ValueError(
                f"Ray has not placed {len(bundles)} processes within {self._options.timeout_s:g} "
                f"s: they need {_amounts(self._needed)}, and "
                f"{_amounts(ray.available_resources())} are free, on all machines together; wait "
                "for other programs, or lower ray.cpus"
            )

    def start(self, settings: Settings) -> dict[str, Any]:
        """Starts all processes, and returns Ray's handles of them by the names of their nodes."""
        groups: dict[str, Any] = {"concurrency_groups": {"control": 100}}
        kind: Any = ray.remote(**groups)(Process)
        elsewhere = settings
        if self._options.replica_gpus:  # services keep arrays in the machine's memory
            elsewhere = settings._replace(jax=settings.jax | {"jax_platforms": "cpu"})
        options = {"max_restarts": -1, "namespace": f"dbjax {secrets.token_hex(4)}"}
        if self._options.env:
            options["runtime_env"] = {"env_vars": dict(self._options.env)}
        return {
            name: kind.options(
                name=name,
                num_cpus=asked["CPU"],
                num_gpus=asked.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, index),
                **options,
            ).remote(settings if "GPU" in asked else elsewhere)
            for index, (name, asked) in enumerate(zip(self._names, self._bundles, strict=True))
        }

    def close(self) -> None:
        """Leaves the cluster, which ends if it was for this run only."""
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None
        if self._joined:
            ray.shutdown()
            self._joined = False


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Restores the handler of SIGTERM after the block, since Ray installs its own."""
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)


def _join(options: RayOptions, cpus: float) -> None:
    """Connects to the cluster; starts it, with enough CPUs, if it is for this run only."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if options.address == "auto":
        with contextlib.suppress(ConnectionError):
            ray.init("auto", **quiet)
            return
        _LOG.warning("ray.address=auto: no cluster runs here, so one is started for this run only")
    if options.address in ("auto", "local"):
        there_are = os.cpu_count() or 1
        ray.init(
            "local",
            num_cpus=max(there_are, math.ceil(cpus)),
            include_dashboard=False,
            _system_config={"worker_niceness": 0},  # Ray's default of 15 yields to other programs
            **quiet,
        )
        return
    _require_reachable(options)
    try:
        ray.init(options.address, **quiet)
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(
            f"ray.address={options.address}: {error}; if it asks for a token, set "
            "RAY_AUTH_MODE=token (docs/cluster.md)"
        ) from error


def _require_reachable(options: RayOptions) -> None:
    """Raises ValueError if nothing listens at the address; Ray itself would try for minutes."""
    host, _, port = options.address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=min(5.0, options.timeout_s)).close()
    except OSError as error:
        raise ValueError(
            f"no Ray cluster answers at ray.address={options.address} ({error}): start one with "
            "'ray start --head', see docs/cluster.md, or use local"
        ) from error


def _amounts(resources: dict[str, float]) -> str:
    kinds = [kind for kind in ("CPU", "GPU") if kind == "CPU" or resources.get(kind)]
    return " and ".join(f"{resources.get(kind, 0.0):g} {kind}s" for kind in kinds)
