"""The config of a run that lies on disk."""

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
    """The resolved config that a run left.

    Raises:
      ValueError: there is none, it cannot be read, or this version of dbjax has other fields.
    """
    return restored(saved_fields(workdir), str(Path(workdir) / CONFIG))


def saved_fields(workdir: str | Path) -> dict[str, Any]:
    """The same as JSON has it.

    Raises:
      ValueError: there is none, or it cannot be read.
    """
    path = Path(workdir) / CONFIG
    try:
        fields: dict[str, Any] = read_json(path, "config")["config"]
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    if not isinstance(fields, dict):
        raise damaged_file(path, "its config is no object")
    return fields


def restored(fields: Mapping[str, Any], where: str) -> ml_collections.ConfigDict:
    """A config from its fields as JSON has them; `where` they stand is named in errors.

    Raises:
      ValueError: this version of dbjax has other fields.
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
                f"{where!r} is of another version of dbjax: no field {name!r}"
                f"{nearest(name, config)}"
            )
        with config.unlocked(), config.ignore_type():
            config[name] = _value(value)
    missing = sorted(set(config) - set(fields))
    if missing:
        raise ValueError(
            f"{where!r} is of another version of dbjax: it has no field {missing[0]!r}"
        )
    try:
        require_whole(config)
    except ValueError as error:
        raise ValueError(
            f"{where!r} is damaged, or of another version of dbjax: {error}"
        ) from error
    return config


def _value(value: Any) -> Any:
    """As it was before it became JSON."""
    if isinstance(value, Mapping):
        return ml_collections.ConfigDict({name: _value(inner) for name, inner in value.items()})
    if isinstance(value, list):
        return tuple(map(_value, value))
    return _INFINITE.get(value, value) if isinstance(value, str) else value
