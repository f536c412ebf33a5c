"""Fields of a config are given values: all at once, so that their order means nothing."""

from __future__ import annotations

import ast
import difflib
import functools
import math
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import ml_collections
import numpy as np

from dbjax.arguments import describe, fits, nearest
from experiments import build
from experiments.defaults import OPEN, defaults, flat, hints, renamed

NEAR = 0.7  # of `difflib`
_COSTS = ("message_s", "machine.flops_per_s", "machine.memory_bandwidth_bytes_per_s")
REPAIR = "cluster.machine.mean_time_to_repair_s"
# Fields, when they have an effect, and what that takes.
_NEEDS: tuple[tuple[str, Callable[[ml_collections.ConfigDict], bool], str], ...] = (
    ("cluster.", lambda c: c.runtime == "virtual", "runtime=virtual"),
    ("ray.", lambda c: c.runtime == "ray", "runtime=ray"),
    # Without, a run is evaluated at its beginning and once at its end.
    ("evaluations", lambda c: c.until_s is not None or c.evaluations == 1, "until_s"),
    *(
        (f"sharding.{name}", lambda c: c.sharding.devices > 1, "sharding.devices above 1")
        for name in ("how", "host_devices")
    ),
    (REPAIR, lambda c: _may_fail(c), "cluster.machine.mean_time_between_failures_s"),
    (
        "cluster.machine.cards",
        lambda c: _transfers_take_time(c),
        "a machine's bandwidth_bytes_per_s",
    ),
    ("cluster.size_scale", lambda c: _has_bandwidth(c), "a bandwidth_bytes_per_s"),
    *(
        (f"cluster.{name}", lambda c: c.cluster.compute_s == "costs", "cluster.compute_s=costs")
        for name in _COSTS
    ),
    ("checkpoint.every", lambda c: _takes_checkpoints(c), "checkpoint.keep, or nodes that die"),
    ("options.local_rule", lambda c: _has_local_steps(c), "options.n_fetch above 1, or overlap"),
    ("options.overlap", lambda c: _overlaps(c), "options.sample below 1"),
)


def assign(
    config: ml_collections.ConfigDict, given: Mapping[str, Any], asked: Collection[str] = ()
) -> None:
    """Gives fields of a config their values.

    A group in `OPEN` holds arguments of what it names, so it takes any field; the library refuses
    wrong ones. Naming something else drops the arguments of what the config named before, and
    none of those that are given.

    Args:
      asked: fields that may be without effect.

    Raises:
      ValueError: there is no such field, it cannot have that value, or it has no effect.
    """

    def read(value: Any, path: str, before: Any) -> Any:
        return _fitting(value, path, before, repr(value))

    _assign(config, given, read, asked)


def assign_texts(
    config: ml_collections.ConfigDict, given: Mapping[str, str], asked: Collection[str] = ()
) -> None:
    """`assign`, where the values are as a command line has them.

    Args:
      asked: fields that have an effect whatever the config says: the command asks for them.

    Raises:
      ValueError: as there.
    """
    _assign(config, given, _read, asked)


def _assign(
    config: ml_collections.ConfigDict,
    given: Mapping[str, Any],
    read: Callable[[Any, str, Any], Any],
    asked: Collection[str] = (),
) -> None:
    for group, named_by in OPEN.items():
        if named_by in given and given[named_by] != at(config, named_by):
            with config.unlocked(), config.ignore_type():
                config[group] = ml_collections.ConfigDict(
                    {"name": config[group].name} if named_by != "algorithm" else {}
                )
    for path in sorted(given):
        _set(config, path, functools.partial(read, given[path], path))
    require_effect(config, set(given) - set(asked))


def require_effect(config: ml_collections.ConfigDict, paths: Iterable[str]) -> None:
    """Raises ValueError if one of the fields is not at its default, and nothing asks for it."""
    at_first = flat(defaults().to_dict())
    for path in sorted(paths):
        value = at(config, path)
        if path in at_first and value == at_first[path]:
            continue
        for prefix, has_effect, needed in _NEEDS:
            if path.startswith(prefix) and not has_effect(config):
                raise ValueError(f"--config.{path}={value} has no effect: it needs {needed}")


def near(name: str, paths: Collection[str]) -> list[str]:
    """Those of the fields that a name may have meant: by their last parts."""
    last = name.rpartition(".")[2].replace("-", "_")
    ends: dict[str, list[str]] = {}
    for path in paths:
        ends.setdefault(path.rpartition(".")[2], []).append(path)
    if name in paths:
        return [name]
    close = [last] if last in ends else difflib.get_close_matches(last, ends, 1, NEAR)
    return sorted((path for end in close for path in ends[end]), key=len)


def known(config: ml_collections.ConfigDict | None) -> list[str]:
    """Names of the fields that a config has, or may have."""
    config = defaults() if config is None else config
    return list(dict.fromkeys([*flat(config.to_dict()), *build.open_fields(config)]))


def _set(config: ml_collections.ConfigDict, path: str, read: Callable[[Any], Any]) -> None:
    *parents, name = path.split(".")
    place, is_open = config, bool(parents) and parents[0] in OPEN
    for depth, parent in enumerate(parents):
        if is_open and depth and parent not in place:
            with place.unlocked():
                place[parent] = ml_collections.ConfigDict()
        place = _field(place, parent, path)
        if not isinstance(place, ml_collections.ConfigDict):
            raise ValueError(f"--config.{path}: {parent!r} has no fields")
    before = None if is_open and name not in place else _field(place, name, path)
    if isinstance(before, ml_collections.ConfigDict):
        raise ValueError(f"--config.{path} is a group of fields{nearest('', before)}")
    with place.unlocked(), place.ignore_type():
        place[name] = read(before)


def _field(place: ml_collections.ConfigDict, name: str, path: str) -> Any:
    if name not in place:
        if (now := renamed(path)) is not None:
            raise ValueError(f"config field {path!r} was renamed: use {now!r}")
        meant = near(path, known(place)) if path == name else []
        said = f"; nearest: {meant[0]!r}" if meant else nearest(name, place)
        raise ValueError(f"config has no field {path!r}{said}")
    return place[name]


def at(config: ml_collections.ConfigDict, path: str) -> Any:
    """The value of a field."""
    place: Any = config
    for name in path.split("."):
        place = place[name]
    return place


def _read(text: str, path: str, before: Any) -> Any:
    """The value that a text stands for."""
    hint = _hint(path, before)
    if hint is str or (hint == str | None and text.lower() != "none"):
        return text
    words: dict[str, Any] = {
        "true": True,
        "false": False,
        "none": None,
        "inf": math.inf,
        "nan": math.nan,
    }
    try:
        value = words[text.lower()] if text.lower() in words else ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    return _fitting(value, path, before, text)


def _fitting(value: Any, path: str, before: Any, text: str) -> Any:
    """The value, if the field may have it."""
    value = value.item() if isinstance(value, np.generic) else value
    hint = _hint(path, before)
    if isinstance(value, bool) and type(before) in (int, float):
        hint = type(before)  # a config would take it for 1 or 0
    if not fits(value, hint):
        was = "" if before is None else f", as {before!r} is"
        raise ValueError(f"--config.{path}={text} must be {describe(hint)}{was}")
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"--config.{path}={text} is no number: give one")
    is_float = float in (hint, *typing.get_args(hint)) or isinstance(before, float)
    return float(value) if is_float and type(value) is int else value


def _hint(path: str, before: Any) -> Any:
    """What a field may be; of arguments the library knows."""
    if path in hints():
        return hints()[path]
    return Any if path.partition(".")[0] in OPEN else type(before)


def _takes_checkpoints(config: ml_collections.ConfigDict) -> bool:
    if config.checkpoint.keep or config.runtime == "ray":
        return True
    cluster = build.cluster(config)
    return cluster is not None and cluster.nodes_can_fail


def _may_fail(config: ml_collections.ConfigDict) -> bool:
    return math.isfinite(config.cluster.machine.mean_time_between_failures_s)


def _transfers_take_time(config: ml_collections.ConfigDict) -> bool:
    """Whether a transfer takes time: as long as the slower of its two machines needs."""
    cluster = build.cluster(config)
    return cluster is None or any(
        math.isfinite(machine.bandwidth_bytes_per_s)
        for machine in (cluster.machine, *cluster.machines.values())
    )


def _has_bandwidth(config: ml_collections.ConfigDict) -> bool:
    """Whether it takes time to move or to read what a message holds."""
    return _transfers_take_time(config) or math.isfinite(
        config.cluster.memory_bandwidth_bytes_per_s
    )


def _has_local_steps(config: ml_collections.ConfigDict) -> bool:
    method = build.algorithm(config)
    return bool(method.n_fetch > 1 or method.overlap)


def _overlaps(config: ml_collections.ConfigDict) -> bool:
    method = build.algorithm(config)
    default = type(method).overlap
    return config.algorithm != "sandblaster" or bool(method.sample < 1 or method.overlap == default)
