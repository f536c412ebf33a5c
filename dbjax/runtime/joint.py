"""The operating-system processes of one replica, which compute jointly by JAX's own means.

`join` makes the process one of a group: JAX then sees the devices of all of them, and a program on
these devices runs when every process of the group has called it (`jax.distributed`). Whoever starts
the processes must end all of them when one fails, and start all of them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_JOIN_S = 30  # how long a process waits for the others of its group
_HEARTBEAT_S = 30  # after this time without a sign of life from one process, JAX ends all others
_END_S = _HEARTBEAT_S + 10.0  # by then, a process has been ended if another one has failed


def free_address(host: str) -> str:
    """Returns an address "host:port" on this machine at which the first process can listen.

    Args:
      host: the address of this machine at which the other processes reach it.
    """
    with socket.socket() as listener:
        listener.bind((host, 0))
        return f"{host}:{listener.getsockname()[1]}"


def join(address: str, processes: int, process: int) -> None:
    """Makes this process one of a group; JAX must not have started in it.

    Args:
      address: where the first process of the group listens.
      processes: the number of processes of the group.
      process: the index of this process.

    Raises:
      Exception: the others have not joined in time.
    """
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    jax.distributed.initialize(
        address,
        processes,
        process,
        cluster_detection_method="deactivate",  # not what a scheduler's variables suggest
        coordinator_bind_address=address,  # JAX would listen on all interfaces
        initialization_timeout=_JOIN_S,
        heartbeat_timeout_seconds=_HEARTBEAT_S,
    )
    least(0)  # connects them


def joint_devices(devices: int, processes: int) -> list[Any]:
    """Returns the devices of a replica that spans this process and others, in order.

    Args:
      devices: the number of devices.
      processes: the number of processes, equally many devices of each.

    Raises:
      ValueError: a process has too few devices.
    """
    each, found = devices // processes, list[Any]()
    for process in range(processes):
        there = jax.local_devices(process_index=process)
        if len(there) < each:
            raise ValueError(
                f"{devices} devices over processes={processes} are {each} in each, but process "
                f"{process} has {len(there)}; on CPUs set jax_num_cpu_devices"
            )
        found += there[:each]
    return found


def least(value: int) -> int:
    """Returns the least of the values that the processes of the group give; each must call this."""
    return int(np.min(_gathered(value)))


def require_same_program(lowered: jax.stages.Lowered) -> None:
    """Raises ValueError unless all processes of the group have lowered the same program.

    Devices would otherwise wait for each other in collectives that are in another order.
    """
    digest = hashlib.sha256(lowered.as_text().encode()).digest()
    if len(np.unique(_gathered(int.from_bytes(digest[:4]) >> 1))) > 1:
        raise ValueError(
            "ModelSharding.loss is traced to another program in each process of a replica: it must "
            "not depend on the order of a set, on hash(), on the time or on the process"
        )


def _gathered(value: int) -> Any:
    with joint_computation():
        return multihost_utils.process_allgather(np.int32(value))


@contextlib.contextmanager
def joint_computation() -> Iterator[None]:
    """Surrounds a computation of all processes of the group, in which one of them may fail.

    The computation then fails in the others. That is no error of the program: they are ended as
    well, and the context waits until that has happened. If it does not happen, the error is raised.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError:
        time.sleep(_END_S)
        raise
