"""The driver of a run on Ray, which starts the processes and collects what they record.

Every node is a Ray actor, and every call of a service is a call of its actor. Ray places the
processes, carries the calls, restarts the dead and notices deaths (docs/decisions/ray.md).
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal, final

import jax
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dbjax.errors import one_line
from dbjax.runtime.event_log import EventLog
from dbjax.runtime.interface import Future
from dbjax.runtime.node_names import NodeKind, backup_name, kind_of, service_name
from dbjax.runtime.ray.handle import Peer, Peers
from dbjax.runtime.ray.members import Members
from dbjax.runtime.ray.options import START_S, RayOptions
from dbjax.runtime.ray.placement import Placement
from dbjax.runtime.ray.process import LogFile, RayNode, Settings
from dbjax.runtime.threads import ThreadsRuntime
from dbjax.runtime.trace import Trace

ProcessFn = Callable[..., Coroutine[Any, Any, Any]]
_SAID_S = 60.0  # how often a warning names the processes that are not ready
_STEP_S = 600.0  # how long processes may finish their computations at the end
_STOP_S = 5.0  # the same after an interrupt
_LOG = logging.getLogger(__name__)
_SAME = ("jax_enable_x64", "jax_numpy_rank_promotion", "jax_num_cpu_devices",
         "jax_default_matmul_precision")  # fmt: skip


@final
class RayRuntime:
    """A `Runtime` of operating-system processes (see `dbjax.runtime.interface` for the rules).

    It does not detect deadlocks, since a process cannot know that no other will ever call it. Give
    an `until_s` where a deadlock may happen.

    Args:
      options: where processes are placed, and what they ask for; None: `RayOptions()`.
      seed: the seed of the program.
      trace: collects rows and spans; None: they are not collected.
      log: records the order in which services serve calls, and what nodes see of time; None:
        nothing is recorded.
      begin_s: the time on the clock at the beginning; above 0 in a resumed run.
      incarnation: how many times the run was resumed, not counting exact resumptions.
    """

    clock: Literal["virtual", "wall"] = "wall"
    defers_arithmetic = False
    recorder = None
    nodes_can_fail = True

    def __init__(
        self,
        options: RayOptions | None = None,
        *,
        seed: int = 0,
        trace: Trace | None = None,
        log: EventLog | None = None,
        begin_s: float = 0.0,
        incarnation: int = 0,
    ) -> None:
        self._options = options or RayOptions()
        self._seed, self._trace, self._log = seed, trace, log
        self._threads = ThreadsRuntime(  # for the observers, which run in the driver
            seed=seed, trace=trace, begin_s=begin_s, incarnation=incarnation
        )
        self._nodes: dict[str, RayNode] = {}
        self._ends: dict[str, Future[Any]] = {}
        self._peers = Peers()
        self._engine = self._threads.engine
        self._engine.services = self._peers
        self._stopping = threading.Event()
        self._placement: Placement | None = None
        self._members: Members | None = None

    def serve(self, name: str, make: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self._put(name, service=(make, args, kwargs))
        return self._peers[name]

    def serve_restorable(
        self, name: str, state_name: str, make: Callable[..., Any], /, *args: Any
    ) -> Any:
        self._put(name, service=(make, args, {}), state_name=state_name)
        return self._peers[name]

    def spawn(self, name: str, main: ProcessFn, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self._put(name, main=(main, args, kwargs))
        future = self._ends[name] = Future[Any](("end", name))
        return future

    def spawn_group(
        self, names: Sequence[str], main: ProcessFn, /, *args: Any, **kwargs: Any
    ) -> list[Future[Any]]:
        for name in names:
            self._put(name, group=tuple(names))
        return [self.spawn(name, main, *args, **kwargs) for name in names]

    def observe(self, name: str, main: ProcessFn, /, *args: Any, **kwargs: Any) -> None:
        self._threads.observe(name, main, *args, **kwargs)

    def stop(self) -> None:
        self._stopping.set()

    def nodes(self) -> list[str]:
        return list(self._nodes)

    def kill(self, name: str, *, hang: bool = False) -> bool:
        """See `Runtime`. Ray starts a process again that was killed, by dbjax if it hangs."""
        if name not in self._nodes or self._members is None:
            raise ValueError(f"kill({name!r}): no such node; there are {', '.join(self._nodes)}")
        return self._members.kill(name, hang)

    @property
    def latest_states(self) -> dict[str, Any]:
        return self._threads.latest_states

    @latest_states.setter
    def latest_states(self, states: dict[str, Any]) -> None:
        self._threads.latest_states = states

    def between_events(self, do: Callable[[], object]) -> None:
        do()

    def cards_busy_s(self) -> dict[str, float]:
        return {}

    def revive(self) -> None:
        if self._members is not None and not self._members.wait(
            lambda: not self._lacking(), START_S
        ):
            raise RuntimeError(
                f"no process has come back within {START_S:g} s for {', '.join(self._lacking())}"
            )

    def run(self, until_s: float = math.inf) -> float:
        """See `Runtime`. Services still answer the driver afterwards, until `close`."""
        try:
            members = self._start()
            members.wait(
                lambda: members.over() or self._stopping.is_set() or self._engine.stopping(),
                until_s - self._engine.now_s(),
            )
            end_s = self._engine.now_s()
            members.stop()
            self._await_stop(members)
            self._threads.finish()
            members.raise_lost()
        except BaseException:
            self.close()
            raise
        if self._trace is not None:
            self._trace.rows.sort(key=lambda row: float(row["time_s"]))  # they arrive in batches
        return min(end_s, until_s)

    def close(self) -> None:
        """Ends all processes."""
        self._engine.stop()
        self._engine.pool.shutdown(wait=False)
        self._peers.close()
        placement, self._placement = self._placement, None
        if placement is not None and ray.is_initialized():  # otherwise Ray would start anew
            if self._members is not None:
                self._members.close()
                if self._log is not None:
                    self._take_rests(self._log, self._members.files)
            placement.close()

    def _put(self, name: str, **what: Any) -> None:
        """Makes something run on a node."""
        self._nodes[name] = self._nodes.get(name, RayNode(name))._replace(**what)

    def _start(self) -> Members:
        self._placement = placement = Placement(self._options, list(self._nodes))
        self._require_going_on()
        placement.reserve()
        machine = ray.get_runtime_context().get_node_id()
        self._peers.me = Peer("driver", 0, "driver", machine, self._peers.arena.owner)
        self._peers.engine = self._engine
        replicas = [name for name in self._nodes if kind_of(name) is NodeKind.REPLICA]
        settings = Settings(
            seed=self._seed,
            max_spans=self._trace.max_spans if self._trace is not None else 0,
            logs=self._log is not None,
            single_replica=len(replicas) <= 1,
            wire_dtype=self._options.wire_dtype,
            jax={name: getattr(jax.config, name) for name in _SAME},
        )
        members = self._members = Members(
            placement.start(settings),
            self._nodes,
            self._ends,
            self._peers,
            self._threads,
            self._log,
            self._options.hang_s,
        )
        self._await_ready(members)
        while not members.go():  # somebody has died since
            self._await_ready(members)
        return members

    def _lacking(self) -> list[str]:
        """Returns the names of the services of which no copy is up."""
        missing = self._members.missing() if self._members is not None else []
        down = {name for name in missing if self._nodes[name].service is not None}
        copies = {name: {name, backup_name(name)} & self._nodes.keys() for name in self._nodes}
        return sorted(n for n in down if n == service_name(n) and copies[n] <= down)

    def _require_going_on(self) -> None:
        """Raises KeyboardInterrupt if a run is stopped before it begins, as it has no results."""
        if self._stopping.is_set():
            raise KeyboardInterrupt

    def _await_ready(self, members: Members) -> None:
        while not members.wait(lambda: not members.missing() or self._stopping.is_set(), _SAID_S):
            _LOG.warning("not ready yet, perhaps still compiling: %s", ", ".join(members.missing()))
        self._require_going_on()

    def _await_stop(self, members: Members) -> None:
        """Waits until all running processes have stopped; after an interrupt, at most 5 s."""
        members.wait(lambda: not members.late() or self._stopping.is_set(), _STEP_S)
        if not members.wait(lambda: not members.late(), _STOP_S):
            late = ", ".join(members.late())
            _LOG.warning("still computing, so their latest records are lost: %s", late)

    def _take_rests(self, log: EventLog, files: Mapping[LogFile, int]) -> None:
        """Adds to the event log what processes recorded last, before they died or were ended."""
        for machine in dict.fromkeys(file.machine for file in files):
            there = {file: taken for file, taken in files.items() if file.machine == machine}
            try:
                log.take(_read(machine, there))
            except Exception as error:
                nodes = ", ".join(sorted({file.node for file in there}))
                lost = f"the event log of {nodes} was lost with its machine"
                log.no_replay(f"{lost}: {one_line(error)}")


def _read(machine: str, files: Mapping[LogFile, int]) -> str:
    """Returns the rests of files on a machine; a task of Ray reads them there."""
    if machine == ray.get_runtime_context().get_node_id():
        return _rests(files)
    there = NodeAffinitySchedulingStrategy(machine, soft=False)
    rests: Any = ray.remote(_rests)
    reading = rests.options(num_cpus=0, scheduling_strategy=there).remote(files)
    lines: str = ray.get(reading, timeout=START_S)
    return lines


def _rests(files: Mapping[LogFile, int]) -> str:
    return "".join(file.rest(taken) for file, taken in files.items())
