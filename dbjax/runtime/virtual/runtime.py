"""The runtime of the virtual cluster: one thread, one virtual clock, real gradients.

The same cluster, seeds and program give the same bytes. `VirtualRuntime` composes the simulator,
the network, the nodes with their processes and services, and the failures of nodes.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Literal, final

from dbjax.errors import DeadlockError, NodeDied
from dbjax.runtime.cluster import Cluster, matches
from dbjax.runtime.context import DRIVER, Caller, current, journaled, of_service
from dbjax.runtime.event_log import EventLog
from dbjax.runtime.interface import Future, SavedState, describe_deadlock, ready
from dbjax.runtime.recording import LiveObservations, Observations, RecordedObservations
from dbjax.runtime.trace import Trace
from dbjax.runtime.virtual.failures import FailureInjector, require_failing_nodes
from dbjax.runtime.virtual.journal import JournaledCoroutine
from dbjax.runtime.virtual.network import Network, busy_s, require_nodes
from dbjax.runtime.virtual.node import VirtualNode
from dbjax.runtime.virtual.process import Process
from dbjax.runtime.virtual.service import VirtualService
from dbjax.runtime.virtual.simulator import Simulator

_LOG = logging.getLogger("dbjax")
ProcessFn = Callable[..., Coroutine[Any, Any, Any]]


@final
class VirtualRuntime:
    """A `Runtime` in virtual time (see `dbjax.runtime.interface` for the rules).

    Args:
      cluster: the machines, the network and the failures; None: `Cluster()`.
      seed: the seed of the program, and of the cluster if it has no seed of its own.
      trace: collects rows and spans; None: they are not collected.
      log: records the order in which services serve calls, and what nodes see of time; None:
        nothing is recorded.
      begin_s: the time on the clock at the beginning; above 0 in a resumed run.
      incarnation: how many times the run was resumed, not counting exact resumptions.
      journals: whether coroutines keep journals, in memory, so that the run can be resumed exactly
        where it stood (`dbjax.checkpoint`).
      recorder: records arithmetic instead of doing it (`parameter_server.abstract`); None: it is
        done.

    Attributes:
      defers_arithmetic: see `Runtime`.
      simulator: the clock and the events.
      network: carries messages between nodes.
      services: every service, by name.
      latest_states: the latest checkpointed state of each service, by name.
    """

    clock: Literal["virtual", "wall"] = "virtual"
    defers_arithmetic = True

    def __init__(
        self,
        cluster: Cluster | None = None,
        *,
        seed: int = 0,
        trace: Trace | None = None,
        log: EventLog | None = None,
        begin_s: float = 0.0,
        incarnation: int = 0,
        journals: bool = False,
        recorder: Any = None,
    ) -> None:
        cluster = (cluster or Cluster()).seeded(seed)
        if cluster.compute_s == "costs":
            raise ValueError("compute_s='costs' is for dbjax.run; here give a CompiledSteps()")
        self.simulator = Simulator(cluster, seed, trace, log, begin_s, incarnation, journals)
        if log is not None:
            log.defers_arithmetic()
        self.network = Network(self.simulator)
        self.recorder = recorder
        if recorder is not None:
            recorder.clock = self.simulator
        self._nodes: dict[str, VirtualNode] = {}
        self._processes: list[Process] = []
        self._observers: list[Process] = []
        self._failures: dict[str, FailureInjector] = {}
        self.services: dict[str, VirtualService] = {}
        self.latest_states: dict[str, SavedState] = {}
        self._began = False

    @property
    def nodes_can_fail(self) -> bool:
        return self.simulator.cluster.nodes_can_fail

    def serve(self, name: str, make: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        node = self._node(name)
        return self._serve(node, lambda _: make(node, *args, **kwargs), lambda: None)

    def serve_restorable(
        self, name: str, state_name: str, make: Callable[..., Any], /, *args: Any
    ) -> Any:
        node = self._node(name)
        return self._serve(
            node,
            lambda state: make(node, state, *args),
            lambda: self.latest_states.get(state_name),
        )

    def spawn(self, name: str, main: ProcessFn, /, *args: Any, **kwargs: Any) -> Future[Any]:
        node = self._node(name)
        caller = self._caller(node, node.name)
        process = Process(self.simulator, node, caller, lambda: main(node, *args, **kwargs))
        process.future.on_done(lambda: self._process_ended(process))
        self._processes.append(process)
        self.simulator.running += 1
        self.simulator.at(self.simulator.now_s, process.start, None)
        self._failures_of(node).add(process)
        return process.future

    def spawn_group(
        self, names: Sequence[str], main: ProcessFn, /, *args: Any, **kwargs: Any
    ) -> list[Future[Any]]:
        raise ValueError(
            f"{names[0]}: a replica of several processes needs runtime='ray', not 'virtual'"
        )

    def observe(self, name: str, main: ProcessFn, /, *args: Any, **kwargs: Any) -> None:
        node = VirtualNode(self.simulator, self.services, name, observer=True)
        caller = self._caller(node, node.name)
        process = Process(self.simulator, node, caller, lambda: main(node, *args, **kwargs))
        self._observers.append(process)
        self._start_observer(process)

    def restart(self, observer: str) -> None:
        """Makes an observer of a restored run start again from the beginning."""
        process = next(one for one in self._observers if one.node.name == observer)
        process.died(for_good=False)
        process.future = Future(process.future.label)
        self._start_observer(process)

    def stop(self) -> None:
        self.simulator.stop()

    def between_events(self, do: Callable[[], object]) -> None:
        self.simulator.between_events(do)

    def nodes(self) -> list[str]:
        return list(self._failures)

    def kill(self, name: str, *, hang: bool = False) -> bool:
        """See `Runtime`. The node is back after a time drawn with its `mean_time_to_repair_s`."""
        if name not in self._failures:
            raise ValueError(f"kill({name!r}): no such node; there are {', '.join(self._failures)}")
        if hang:
            raise ValueError(f"kill({name!r}, hang=True): only nodes of runtime='ray' can hang")
        alive = self._failures[name].alive
        _ = self._kill(name)
        return alive

    @journaled
    def _kill(self, name: str) -> Future[None]:
        self._failures[name].kill()
        return ready(None)

    def cards_busy_s(self) -> dict[str, float]:
        interfaces = (node.interface for node in self._nodes.values())
        return busy_s(interfaces, self.simulator.now_s)

    def serves(self) -> bool:
        """Returns whether the nodes of all services are up."""
        return all(self._failures[name].alive for name in self.services)

    def revive(self) -> None:
        for service in self.services.values():
            service.revive()

    def close(self) -> None:
        """Does nothing, since nothing runs outside this process."""

    def run(self, until_s: float = math.inf) -> float:
        cluster, simulator = self.simulator.cluster, self.simulator
        if not self._began:
            require_failing_nodes(cluster, self._failures)
            require_nodes(cluster, self._nodes)
            if self.recorder is None:
                self.warn_of_unused_machines()
            self._began = True
        try:
            end_s = simulator.run(until_s, len(self._nodes) + len(self._observers))
            simulator.raise_lost_error()
            if simulator.running and simulator.out_of_events():
                self._raise_deadlock()
            return end_s
        finally:
            current.caller = DRIVER

    def journals(self) -> Iterator[JournaledCoroutine]:
        """Returns the journals of all coroutines that have not ended."""
        found = (one.journal() for one in self._coroutines())
        return (journal for journal in found if journal is not None)

    def fast_forward(self) -> None:
        """Brings all coroutines to the waits where they stood, in a run whose objects are restored.

        They record no rows meanwhile, since the trace has those rows already.
        """
        simulator = self.simulator
        trace, spans = simulator.trace, simulator.spans
        simulator.trace = simulator.spans = None
        try:
            for one in self._coroutines():
                one.fast_forward()
        finally:
            simulator.trace, simulator.spans = trace, spans
            current.caller = DRIVER

    def _coroutines(self) -> Iterator[Process | VirtualService]:
        """Everything that may have a waiting coroutine."""
        return itertools.chain(self._processes, self._observers, self.services.values())

    def _node(self, name: str) -> VirtualNode:
        if name not in self._nodes:
            self._nodes[name] = VirtualNode(self.simulator, self.services, name)
        return self._nodes[name]

    def _serve(
        self,
        node: VirtualNode,
        make: Callable[[Any], Any],
        saved: Callable[[], SavedState | None],
    ) -> VirtualService:
        self.services[node.name] = made = VirtualService(
            self.simulator,
            self.network,
            node,
            self._caller(node, of_service(node.name), node.name),
            self._failures_of(node),
            make,
            saved,
        )
        return made

    def _caller(self, node: VirtualNode, label: str, service: str | None = None) -> Caller:
        log = None if node.observer else self.simulator.log
        observations: Observations = LiveObservations()
        if log is not None:
            observations = RecordedObservations(log, label, service=service)
        return Caller(node, label, observations, is_service=service is not None)

    def _failures_of(self, node: VirtualNode) -> FailureInjector:
        if node.name not in self._failures:
            self._failures[node.name] = FailureInjector(self.simulator, node)
        return self._failures[node.name]

    def _start_observer(self, process: Process) -> None:
        process.future.on_done(lambda: self._stop_if_lost(process))
        self.simulator.at_unnoticed(self.simulator.now_s, process.start, None)

    def _process_ended(self, process: Process) -> None:
        self.simulator.process_ended()
        self._stop_if_lost(process)

    def _stop_if_lost(self, process: Process) -> None:
        """Rule 7: a process that fails while nobody awaits it ends the run at once."""
        error = process.future.error()
        if error and not isinstance(error, NodeDied) and not process.future.watched():
            self.simulator.stop()

    def warn_of_unused_machines(self) -> None:
        """Warns of machines in the cluster that no node uses."""
        patterns = self.simulator.cluster.machines
        used = {next((p for p in patterns if matches(p, name)), None) for name in self._nodes}
        for pattern in patterns:
            if pattern not in used:
                _LOG.warning(
                    "Cluster.machines: no node uses the machine of %r; the nodes are %s",
                    pattern,
                    ", ".join(sorted(self._nodes)[:6]),
                )

    def _raise_deadlock(self) -> None:
        waiting = (process for process in self._processes if not process.future.done())
        waits = {process.node.name: process.waiting for process in waiting}
        raise DeadlockError(describe_deadlock(self.simulator.now_s, waits))
