"""Reads the config of a run from its run directory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from dbjax.arguments import nearest
from dbjax.files import damaged_file, read_json
from experiments.defaults import defaults, renamed, require_whole

CONFIG = "config.json"
_INFINITE = {"inf": math.inf, "-inf": -math.inf}


def saved(workdir: str | Path) -> ml_collections.ConfigDict:
    """Returns the config of the run in a workdir.

    Raises:
      ValueError: config.json is missing or damaged, or this version of dbjax has other fields.
    """
    return restored(saved_fields(workdir), str(Path(workdir) / CONFIG))


def saved_fields(workdir: str | Path) -> dict[str, Any]:
    """Returns the config of the run in a workdir as the JSON object in its config.json.

    Raises:
      ValueError: config.json is missing or damaged.
    """
    path = Path(workdir) / CONFIG
    try:
        fields: dict[str, Any] = read_json(path, "config")["config"]
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    if not isinstance(fields, dict):
        raise damaged_file(path, "its config is not an object")
    return fields


def restored(fields: Mapping[str, Any], where: str) -> ml_collections.ConfigDict:
    """Rebuilds a config from the JSON object that a run saved.

    Args:
      fields: the JSON object.
      where: the name of the file in errors.

    Raises:
      ValueError: this version of dbjax has other fields, or a value has the wrong type.
    """
    config = defaults()
    for name, value in fields.items():
        if (now := renamed(name)) is not None:
            raise ValueError(
                f"{where!r} is of an earlier version of dbjax: its field {name!r} was renamed "
                f"{now!r}; run it again in another folder"
            )
        if name not in config:
            raise ValueError(
                f"{where!r} is from another version of dbjax: there is no field {name!r}"
                f"{nearest(name, config)}"
            )
        with config.unlocked(), config.ignore_type():
            config[name] = _value(value)
    missing = sorted(set(config) - set(fields))
    if missing:
        raise ValueError(
            f"{where!r} is from another version of dbjax: it lacks the field {missing[0]!r}"
        )
    try:
        require_whole(config)
    except ValueError as error:
        raise ValueError(
            f"{where!r} is damaged, or from another version of dbjax: {error}"
        ) from error
    return config


def _value(value: Any) -> Any:
    """Converts a JSON value back to the config's own: groups, tuples and infinities."""
    if isinstance(value, Mapping):
        return ml_collections.ConfigDict({name: _value(inner) for name, inner in value.items()})
    if isinstance(value, list):
        return tuple(map(_value, value))
    return _INFINITE.get(value, value) if isinstance(value, str) else value
