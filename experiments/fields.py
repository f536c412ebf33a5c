"""Assigns values to config fields, all at once, so that their order does not matter."""

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
from experiments import algorithms, build
from experiments.defaults import OPEN, defaults, flat, hints, renamed

NEAR = 0.7  # the least similarity of a suggested name, as `difflib` measures it
_COSTS = ("message_s", "machine.flops_per_s", "machine.memory_bandwidth_bytes_per_s")
REPAIR = "cluster.machine.mean_time_to_repair_s"
# Prefixes of fields, whether such a field has an effect, and what it needs to have one.
_NEEDS: tuple[tuple[str, Callable[[ml_collections.ConfigDict], bool], str], ...] = (
    ("cluster.", lambda c: c.runtime == "virtual", "runtime=virtual"),
    ("ray.", lambda c: c.runtime == "ray", "runtime=ray"),
    # Without until_s, a run is evaluated only at its beginning and its end.
    ("evaluations", lambda c: c.until_s is not None or c.evaluations == 1, "until_s"),
    *(
        (f"sharding.{name}", lambda c: c.sharding.devices > 1, "sharding.devices above 1")
        for name in ("how", "host_devices", "processes")
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
    (
        "checkpoint.every",
        lambda c: _takes_checkpoints(c),
        "checkpoint.keep, or nodes that can fail",
    ),
    ("options.local_rule", lambda c: _has_local_steps(c), "options.n_fetch above 1, or overlap"),
    ("options.overlap", lambda c: _overlaps(c), "options.sample below 1"),
)


def assign(
    config: ml_collections.ConfigDict, given: Mapping[str, Any], asked: Collection[str] = ()
) -> None:
    """Sets fields of a config.

    A group in `OPEN` holds the arguments of what it names (a rule, say), so it accepts any field;
    building the config rejects wrong ones. Choosing another rule resets its arguments to the
    given ones.

    Args:
      config: the config to change.
      given: the new values, by full field name.
      asked: fields that may be set even if they have no effect.

    Raises:
      ValueError: there is no such field, the value is wrong, or it has no effect.
    """

    def read(value: Any, path: str, before: Any) -> Any:
        return _fitting(value, path, before, repr(value))

    _assign(config, given, read, asked)


def assign_texts(
    config: ml_collections.ConfigDict, given: Mapping[str, str], asked: Collection[str] = ()
) -> None:
    """Sets fields of a config to values given as text, as on a command line.

    Args:
      config: the config to change.
      given: the new values as text, by full field name.
      asked: fields that may be set even if they have no effect.

    Raises:
      ValueError: there is no such field, the value is wrong, or it has no effect.
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
    """Raises ValueError if one of the fields is not at its default but has no effect."""
    at_first = flat(defaults().to_dict())
    for path in sorted(paths):
        value = at(config, path)
        if path in at_first and value == at_first[path]:
            continue
        for prefix, has_effect, needed in _NEEDS:
            if path.startswith(prefix) and not has_effect(config):
                raise ValueError(f"--config.{path}={value} has no effect: it needs {needed}")


def near(name: str, paths: Collection[str]) -> list[str]:
    """Finds the fields whose last part is most similar to that of a misspelt name.

    Args:
      name: the misspelt name.
      paths: the full names of all fields.

    Returns:
      The full names, shortest first; empty if none is similar.
    """
    last = name.rpartition(".")[2].replace("-", "_")
    ends: dict[str, list[str]] = {}
    for path in paths:
        ends.setdefault(path.rpartition(".")[2], []).append(path)
    if name in paths:
        return [name]
    close = [last] if last in ends else difflib.get_close_matches(last, ends, 1, NEAR)
    return sorted((path for end in close for path in ends[end]), key=len)


def known(config: ml_collections.ConfigDict | None) -> list[str]:
    """Full names of the fields that a config has or may have; None: the default config."""
    config = defaults() if config is None else config
    return list(dict.fromkeys([*flat(config.to_dict()), *algorithms.open_fields(config)]))


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
        message = f"; nearest: {meant[0]!r}" if meant else nearest(name, place)
        raise ValueError(f"config has no field {path!r}{message}")
    return place[name]


def at(config: ml_collections.ConfigDict, path: str) -> Any:
    """Returns the value of the field with the given full name."""
    place: Any = config
    for name in path.split("."):
        place = place[name]
    return place


def _read(text: str, path: str, before: Any) -> Any:
    """Parses the text of a field's value.

    Args:
      text: the value as text.
      path: the full name of the field.
      before: the field's present value.
    """
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
    """Returns the value, converted to float where the field is one; raises if its type is wrong."""
    value = value.item() if isinstance(value, np.generic) else value
    hint = _hint(path, before)
    if isinstance(value, bool) and type(before) in (int, float):
        hint = type(before)  # a ConfigDict would accept a bool as 1 or 0
    if not fits(value, hint):
        was = "" if before is None else f", like {before!r}"
        raise ValueError(f"--config.{path}={text} must be {describe(hint)}{was}")
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"--config.{path}={text} is not a number: give one")
    is_float = float in (hint, *typing.get_args(hint)) or isinstance(before, float)
    return float(value) if is_float and type(value) is int else value


def _hint(path: str, before: Any) -> Any:
    """The type of a field; Any for arguments, which are checked when the config is built."""
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
    """Whether any machine has a finite bandwidth; the slower of two sets a transfer's time."""
    cluster = build.cluster(config)
    return cluster is None or any(
        math.isfinite(machine.bandwidth_bytes_per_s)
        for machine in (cluster.machine, *cluster.machines.values())
    )


def _has_bandwidth(config: ml_collections.ConfigDict) -> bool:
    """Whether sending a message's content, or reading it from memory, takes time."""
    return _transfers_take_time(config) or math.isfinite(
        config.cluster.memory_bandwidth_bytes_per_s
    )


def _has_local_steps(config: ml_collections.ConfigDict) -> bool:
    method = algorithms.algorithm(config)
    return bool(method.n_fetch > 1 or method.overlap)


def _overlaps(config: ml_collections.ConfigDict) -> bool:
    method = algorithms.algorithm(config)
    default = type(method).overlap
    return config.algorithm != "sandblaster" or bool(method.sample < 1 or method.overlap == default)
