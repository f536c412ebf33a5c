"""A `Schedule`: who computed which gradient at which versions, and when shards applied it.

The timing of an asynchronous run is a table of integers. For methods whose timing does not depend
on values, it is the same for all rates, data orders and initial values.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any, final

import numpy as np

from dbjax.arguments import require_at_least, require_seed
from dbjax.files import write_bytes

Ints = np.ndarray[Any, np.dtype[np.int32]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
_FORMAT = "dbjax schedule 1"


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """The timing of a run, as arrays.

    A push carries the sum of one gradient or several, of one replica; in synchronous SGD it carries
    the mean of the gradients of all replicas. There are K gradients, in the order of the pushes
    that carry them, P pushes and S shards. Every shard applies pushes in an order of its own.

    Attributes:
      replica: the number of the replica that computes a gradient, int32 [K].
      step: the number of its mini-batch, int32 [K].
      version: the version of each shard's slice that the replica had fetched last, int32 [K, S].
      own: whether the replica has taken local steps since then, from the gradient before, bool [K].
      stepped: whether the replica takes a local step with the gradient, bool [K].
      life: how often the replica's node had come back after a failure, int32 [K].
      push: the number of the push that carries the gradient, ascending, int32 [K].
      position: how many updates a shard has applied before the push; -1 if it never applies it,
        int32 [P, S].
      time_s: when a shard applies a push, in seconds on the run's clock; NaN if never,
        float64 [P, S].
      mean: whether a push carries the mean of its gradients, rather than their sum.
    """

    replica: Ints
    step: Ints
    version: Ints
    own: Bools
    stepped: Bools
    life: Ints
    push: Ints
    position: Ints
    time_s: Floats
    mean: bool = False

    def __post_init__(self) -> None:
        for field in _ARRAYS:
            dtype = _ARRAYS[field]
            array = np.ascontiguousarray(getattr(self, field), dtype)
            array = array if array is not getattr(self, field) else array.view()
            array.flags.writeable = False
            object.__setattr__(self, field, array)
        object.__setattr__(self, "mean", bool(self.mean))
        _require_valid(self)

    @property
    def gradients(self) -> int:
        """The number of gradients, K."""
        return len(self.replica)

    @property
    def pushes(self) -> int:
        """The number of pushes, P."""
        return len(self.position)

    @property
    def shards(self) -> int:
        """The number of shards, S."""
        return int(self.position.shape[1])

    @property
    def replicas(self) -> int:
        """The number of replicas."""
        return int(self.replica.max(initial=-1)) + 1

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 digest of all arrays, in hexadecimal."""
        found = hashlib.sha256(f"{_FORMAT} {self.mean}".encode())
        for name in _ARRAYS:
            array: Any = getattr(self, name)
            found.update(f"{name}{array.dtype.str}{array.shape}".encode())
            found.update(array.data if array.size else b"")
        return found.hexdigest()

    @functools.cached_property
    def first(self) -> Ints:
        """For each push, the index of its first gradient, and at the end K; int32 [P + 1]."""
        return np.searchsorted(self.push, np.arange(self.pushes + 1)).astype(np.int32)

    def digest_until(self, versions: Any) -> str:
        """Returns a digest of everything before the shards have these versions, in hexadecimal.

        It is the same for a run that lasts longer.
        """
        before: Any = (self.position >= 0) & (self.position < np.asarray(versions))
        pushes: Any = before.any(1)
        gradients = pushes[self.push]
        found = hashlib.sha256()
        for name in ("replica", "step", "version", "own", "stepped", "life"):
            found.update(np.ascontiguousarray(getattr(self, name)[gradients]).data)
        found.update(np.diff(self.first)[pushes].tobytes())
        for name, absent in (("position", -1), ("time_s", -1.0)):
            kept = np.where(before, getattr(self, name), absent)[pushes]
            found.update(kept.tobytes())
        return found.hexdigest()

    def staleness(self) -> Ints:
        """Returns the staleness of pushes: the updates since their oldest gradient was computed.

        Returns:
          int32 [P, S]; -1 where a shard never applies the push.
        """
        oldest = self.version[self.first[:-1]]
        return np.where(self.position < 0, -1, self.position - oldest).astype(np.int32)

    def version_skew(self) -> Ints:
        """Returns by how many updates the slices differed that a gradient was computed at, [K]."""
        skew: Ints = (self.version.max(1) - self.version.min(1)).astype(np.int32)
        return skew

    def throughput(self) -> Floats:
        """Returns the updates per second of each replica, mean over shards, float64 [replicas].

        The time is counted up to the last update of the run. A replica counts for the share of the
        gradients of a push that are its own.
        """
        applied = (self.position >= 0).mean(1)
        carried = np.diff(self.first)
        of_gradient = (applied / np.maximum(carried, 1))[self.push]
        counts = np.bincount(self.replica, of_gradient, minlength=self.replicas)
        end_s = np.nanmax(self.time_s, initial=0.0)
        return np.asarray(counts / end_s if end_s > 0 else np.full(self.replicas, np.inf))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the schedule and its digest to an npz file, atomically."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        about = np.array([_FORMAT, str(self.mean), self.digest])
        content = io.BytesIO()
        np.savez_compressed(content, about=about, **arrays)
        write_bytes(Path(path), content.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Schedule:
        """Reads a schedule that `save` has written.

        Raises:
          ValueError: the file is not a schedule, or is damaged.
        """
        try:
            with np.load(path) as found:
                known, mean, digest = map(str, found["about"])
                if known != _FORMAT:
                    raise ValueError(f"its format is {known!r}, not {_FORMAT!r}")
                made = cls(**{name: found[name] for name in _ARRAYS}, mean=mean == "True")
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{os.fspath(path)} is not a schedule: {error}") from error
        if made.digest != digest:
            raise ValueError(f"{os.fspath(path)} is damaged: its digest differs from its content")
        return made


_ARRAYS: dict[str, Any] = {
    "replica": np.int32, "step": np.int32, "version": np.int32, "own": np.bool_,
    "stepped": np.bool_, "life": np.int32, "push": np.int32, "position": np.int32,
    "time_s": np.float64,
}  # fmt: skip


def _require_valid(schedule: Schedule) -> None:
    count, shape = len(schedule.replica), schedule.position.shape
    for name in ("step", "own", "stepped", "life", "push"):
        if getattr(schedule, name).shape != (count,):
            raise ValueError(f"Schedule.{name} has the shape {getattr(schedule, name).shape}, "
                             f"but there are {count} gradients")  # fmt: skip
    if len(shape) != 2 or not shape[1] or schedule.version.shape != (count, shape[1]):
        raise ValueError(f"Schedule.version has the shape {schedule.version.shape}, and position "
                         f"{shape}: they must be [K, S] and [P, S]")  # fmt: skip
    if schedule.time_s.shape != shape:
        raise ValueError(f"Schedule.time_s has the shape {schedule.time_s.shape}, not {shape}")
    if not np.array_equal(np.unique(schedule.push), np.arange(shape[0])):
        raise ValueError("Schedule.push must number all pushes: each carries at least one gradient")
    if np.any(np.diff(schedule.push) < 0):
        raise ValueError("Schedule.push must ascend: gradients come in the order of their pushes")
    for name in ("replica", "step", "life", "version"):
        if getattr(schedule, name).min(initial=0) < 0:
            raise ValueError(f"Schedule.{name} must not be negative")
    for shard, column in enumerate(schedule.position.T):
        applied = np.sort(column[column >= 0])
        if not np.array_equal(applied, np.arange(len(applied))):
            raise ValueError(f"Schedule.position of shard {shard} must be a permutation: every "
                             "update is applied once")  # fmt: skip
        due, read = column[schedule.push], schedule.version[:, shard]
        late = np.flatnonzero((due >= 0) & (read > due))
        if len(late):
            raise ValueError(f"Schedule.version[{late[0]}, {shard}]={read[late[0]]} is later than "
                             f"the update that it makes, {due[late[0]]}")  # fmt: skip
        if read.max(initial=0) > len(applied):
            raise ValueError(f"Schedule.version of shard {shard} reaches {read.max()}, but there "
                             f"are {len(applied)} updates")  # fmt: skip


def constant(pushes: int, staleness: int) -> Schedule:
    """Returns a schedule in which every gradient is equally stale, except for the first ones.

    Args:
      pushes: the number of pushes, all by replica 0.
      staleness: the staleness of each push, in updates; the first pushes have less.
    """
    require_at_least("constant", 1, pushes=pushes)
    require_at_least("constant", 0, staleness=staleness)
    return from_delays(np.full(pushes, staleness))


def geometric(pushes: int, mean: float, *, seed: int = 0) -> Schedule:
    """Returns a schedule with geometrically distributed staleness, drawn independently.

    This is the law of many replicas whose durations are exponentially distributed (Mitliagkas et
    al. 2016).

    Args:
      pushes: the number of pushes, all by replica 0.
      mean: the mean staleness, in updates.
      seed: the seed of the draws.
    """
    require_at_least("geometric", 1, pushes=pushes)
    if not mean >= 0:
        raise ValueError(f"geometric(mean={mean}) must be at least 0")
    random = np.random.default_rng(require_seed("geometric(seed)", seed))
    return from_delays(random.geometric(1 / (1 + mean), pushes) - 1)


def from_delays(delays: Any) -> Schedule:
    """Returns the schedule of one shard with these delays.

    Args:
      delays: the staleness of each push, in updates, int [P]; or the path of a text file that has
        them one on each line. Where fewer updates have been made before, the push is computed at
        the initial parameters.

    Raises:
      ValueError: a delay is not a whole number, or is negative.
    """
    if isinstance(delays, (str, os.PathLike)):
        found = np.loadtxt(delays, ndmin=1)
    else:
        found = np.asarray(delays)
    if found.ndim != 1 or not len(found) or np.any(found != np.round(found)) or found.min() < 0:
        raise ValueError("delays must be whole numbers of at least 0, one for each push")
    pushes = np.arange(len(found))
    return _single(np.zeros_like(pushes), pushes, np.maximum(0, pushes - found.astype(np.int64)))


def round_robin(pushes: int, replicas: int) -> Schedule:
    """Returns the schedule of equally fast replicas that push in turn, on one shard.

    Each fetches right after its push, so the staleness is `replicas` - 1 (proof 6).

    Args:
      pushes: the number of pushes of all replicas together.
      replicas: the number of replicas.
    """
    require_at_least("round_robin", 1, pushes=pushes, replicas=replicas)
    at = np.arange(pushes)
    return _single(at % replicas, at // replicas, np.maximum(0, at - replicas + 1))


def _single(replica: Any, step: Any, version: Any) -> Schedule:
    """Returns a schedule of one shard, in which every push carries one gradient."""
    at: Any = np.arange(len(replica))
    nothing = np.zeros(len(at), bool)
    return Schedule(replica, step, version[:, None], nothing, nothing, 0 * at, at, at[:, None],
                    at[:, None].astype(float))  # fmt: skip
