"""Taking checkpoints of a run: every so often, and at its end."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any, final

from dbjax.arguments import require_fields, require_positive
from dbjax.checkpoint.encoding import ArrayTable
from dbjax.checkpoint.exact import ExactResume, ExactState
from dbjax.checkpoint.files import Checkpoints
from dbjax.checkpoint.state import CheckpointState, RunSignature, rows_to_keep
from dbjax.program import Program
from dbjax.runtime.interface import Node, Runtime
from dbjax.runtime.trace import Row, Trace

_LOG = logging.getLogger("dbjax")


@dataclasses.dataclass(frozen=True)
class Every:
    """How often; whichever comes first.

    Attributes:
      seconds: on the run's clock; None: not by time.
      updates: of the shard that is behind; None: not by their number.
    """

    seconds: float | None = None
    updates: int | None = None

    def __post_init__(self) -> None:
        require_fields("Every", self)
        for name in ("seconds", "updates"):
            value = getattr(self, name)
            if value is not None:
                require_positive(f"checkpoints every {name}", value, ", or None")


@final
class CheckpointManager:
    """Checkpoints of one run.

    Args:
      described: see `checkpoint.described`.
      replicas: of the run.
      checkpoints: where they go; None: they stay in memory, for shards that die.

    Attributes:
      exactly: also where a virtual run stands, to the last bit; None: only what shards know.
    """

    def __init__(
        self,
        program: Program,
        runtime: Runtime,
        described: RunSignature,
        replicas: int,
        incarnation: int,
        checkpoints: Checkpoints | None,
        trace: Trace,
    ) -> None:
        self._program, self._runtime, self._described = program, runtime, described
        self._replicas, self._incarnation, self._checkpoints = replicas, incarnation, checkpoints
        self._trace = trace
        self.exactly: ExactResume | None = None

    async def run(self, node: Node, every: Every) -> None:
        """Takes them while the run goes on; the cluster does not notice."""
        seconds = math.inf if every.seconds is None else every.seconds
        taken_s, updates = node.saved_progress() or (node.now(), await self._updates())
        while True:
            node.save_progress((taken_s, updates))
            due_s = taken_s + seconds
            if every.updates is None:
                await node.sleep(max(0.0, due_s - node.now()))
            else:
                await self._wait(node, due_s, updates + every.updates)
            taken_s, updates = max(due_s, node.now()), await self._updates()
            states = await self._program.server.broadcast(self._program.shard.checkpoint)
            names = [shard.name for shard in self._program.server.shards]
            self._runtime.latest_states = dict(zip(names, states, strict=True))
            content = self._content(states, node.now())
            if self._checkpoints is not None and self.exactly is None:
                self._checkpoints.save(content, self._arrays())
            elif self._checkpoints is not None:
                self._runtime.between_events(functools.partial(self._save, content))

    def save_final(self, time_s: float, look: Callable[[], object]) -> None:
        """One more, now that the run is over, and all of them on disk.

        Where what is dead is brought back, so that it can be asked, the run itself stays as it is.

        Args:
          look: says what went wrong, so that the checkpoint knows that it was said.
        """
        arrays = self._arrays()
        exact = None if self._checkpoints is None else self._exact(arrays)
        self._runtime.revive()
        if self._checkpoints is not None:
            look()
            states = self._program.server.broadcast(self._program.shard.checkpoint).result()
            content = dataclasses.replace(self._content(states, time_s), exact=exact)
            self._checkpoints.save(content, arrays)
            self._checkpoints.wait()

    def _arrays(self) -> ArrayTable:
        return ArrayTable(self._described.structures)

    def _content(self, states: list[Any], time_s: float) -> CheckpointState:
        return CheckpointState(
            self._described.about,
            self._replicas,
            self._program.server.partition.shards,
            tuple(states),
            self._incarnation,
            time_s,
            self._rows(),
        )

    def _rows(self) -> tuple[Row, ...]:
        return rows_to_keep(self._trace.rows, self._program.recent_losses)

    def _save(self, content: CheckpointState) -> None:
        """Between two events of a virtual run."""
        assert self._checkpoints is not None
        arrays = self._arrays()
        exact = self._exact(arrays)
        self._checkpoints.save(dataclasses.replace(content, exact=exact, rows=self._rows()), arrays)

    def _exact(self, arrays: ArrayTable) -> ExactState | None:
        if self.exactly is None:
            return None
        try:
            return self.exactly.take(arrays)
        except TypeError as error:
            _LOG.warning("this run cannot be taken up exactly, only its shards: %s", error)
            self.exactly = None
            return None

    async def _updates(self) -> int:
        reports = await self._program.server.broadcast(self._program.shard.report)
        return min(report.version for report in reports)

    async def _wait(self, node: Node, due_s: float, updates: int) -> None:
        """Until then, or until there are that many; looks the more often the nearer it is.

        Next after half the time that the rest should take, which is half an update's at least:
        otherwise the looks would come ever faster before the last update, without end.
        """
        begin_s, before, step_s = node.now(), await self._updates(), 1e-3
        now = before
        while now < updates and node.now() < due_s:
            await node.sleep(min(step_s, max(0.0, due_s - node.now())))
            now = await self._updates()
            each_s = (node.now() - begin_s) / max(1, now - before)
            step_s = min(2 * step_s, (updates - now) / 2 * each_s)
