"""Decides what belongs to the state of a virtual run, and what does not."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import jax
import numpy as np

from dbjax.checkpoint.encoding import class_name
from dbjax.checkpoint.exact.ours import is_ours
from dbjax.runtime.context import Caller
from dbjax.runtime.event_log import EventLog, Seen, ServiceStream
from dbjax.runtime.futures import Future
from dbjax.runtime.recording import LiveObservations, RecordedObservations, ReplayedObservations
from dbjax.runtime.trace import Trace

ATOMS = (type(None), bool, int, float, str)
ARRAYS = (np.ndarray, jax.Array)
# Instances of these change during a run, so they have no names: they are saved and made again.
ANEW = (itertools.count, np.random.Generator, type(threading.Lock()), type(threading.RLock()))
# Classes that only observe a run. Attributes that hold their instances keep the new run's.
LISTENERS = (
    Trace,
    EventLog,
    Seen,
    ServiceStream,
    RecordedObservations,
    LiveObservations,
    ReplayedObservations,
)
# Instances that exist before the run have a name, as nodes do, although they have no `__dict__`.
SLOTTED = (Future, Caller)
# Attributes that a resumed run must not take from the checkpoint, by the name of their class.
_OWN = {
    "dbjax.runtime.virtual.simulator:Simulator": {"journals", "_pauses", "_stopping", "_halting"},
}
# Modules whose instances hold only what the new run has, too: data, compiled programs, files.
_STATELESS = (
    "dbjax.checkpoint",
    "dbjax.data",
    "dbjax.models",
    "dbjax.model_parallel",
    "dbjax.costs",
    "dbjax.parameter_server.gradient_fn",
)
# Attributes that `Names` does not follow, because they hold only objects without a name.
MOVING = {"_events", "_unnoticed", "failed", "latest_states", "_callbacks"}


def attributes(value: Any) -> dict[str, Any]:
    """Returns the attributes of an instance that belong to the state of a run, by their names."""
    kind = type(value)
    slots = [s for c in kind.__mro__ for s in _slots(c) if s not in ("__weakref__", "__dict__")]
    found = {name: getattr(value, name) for name in slots} | getattr(value, "__dict__", {})
    own = _OWN.get(class_name(kind), set())
    return {n: v for n, v in found.items() if n not in own and not isinstance(v, LISTENERS)}


def _slots(kind: type[Any]) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def has_state(value: Any) -> bool:
    """Returns whether a value may change during a run, so that its attributes must be saved."""
    module = type(value).__module__
    fixed = is_value(value) or isinstance(value, LISTENERS) or module.startswith(_STATELESS)
    return is_ours(module) and not fixed


def is_value(value: Any) -> bool:
    """Returns whether a value never changes, because it is a frozen dataclass."""
    params = getattr(value, "__dataclass_params__", None)
    return params is not None and bool(params.frozen)
