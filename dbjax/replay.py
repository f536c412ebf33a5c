"""`replay`: a run in real time done again, from its event log, in the virtual runtime."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from dbjax.arguments import require_seed, short_repr
from dbjax.errors import ReplayError
from dbjax.monitoring.metrics import params_sha256
from dbjax.program import Program
from dbjax.runtime.cluster import Cluster
from dbjax.runtime.event_log import Script
from dbjax.runtime.virtual import VirtualRuntime
from dbjax.task import Task
from dbjax.types import Params
from dbjax.validation import algorithm_of, require_task

_LOG = logging.getLogger("dbjax")


class Replayed(NamedTuple):
    """What came of it.

    Attributes:
      params: the parameters at the end, or where the log breaks off.
      params_sha256: their digest.
      calls: how many were served again.
      breaks_off: where the log does; None: it is whole.
    """

    params: Params
    params_sha256: str
    calls: int
    breaks_off: str | None = None


def replay(task: Task, config: Any, script: Script, *, seed: int = 0) -> Replayed:
    """Trains again as a run in threads or on Ray did, call by call: the same bytes.

    Every service serves in the order of the log, every node sees of time what it saw then.
    The arithmetic is done anew; versions are compared at every call. A log that breaks off is done
    again as far as all that it says fits together, and a warning says where that is.

    Args:
      task: that of the run; the same for the other arguments.

    Raises:
      ReplayError: nodes died in the run, or it was taken up; a version differs, or the log asks
        for calls that are never made.
    """
    require_task(task)
    if not isinstance(script, Script):
        raise TypeError(
            f"script={short_repr(script)} is no Script: give dbjax.Script(lines) of the log"
        )
    if script.no_replay is not None:
        raise ReplayError(f"this run cannot be done again: {script.no_replay}")
    if script.breaks_off is None and not script.count():
        raise ReplayError("the event log holds no calls: there is nothing to do again")
    seed = require_seed("seed", seed)
    runtime = VirtualRuntime(Cluster(compute_s=0.0), seed=seed, script=script)
    program: Program = algorithm_of(config).program(runtime, task.seeded(seed), config)
    runtime.run()
    done, there_are = runtime.replayed(), script.count()
    if script.breaks_off is not None:
        _LOG.warning(
            "the event log breaks off %s: %d of its %d calls are done again, the rest of the run "
            "is not known", script.breaks_off, done, there_are,
        )  # fmt: skip
    elif done != there_are:
        raise ReplayError(
            f"only {done} of {there_are} calls of the log were made: it is of another program, or "
            "damaged"
        )
    params = program.join(program.server.fetch(program.shard.peek).result().slices)
    return Replayed(params, params_sha256(params), done, script.breaks_off)
