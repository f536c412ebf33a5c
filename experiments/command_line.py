"""--config=FILE[:VARIANT] --workdir=DIR --config.FIELD=VALUE, with errors of one line."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections

from experiments.build import nearest

CONFIGS = Path("configs")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the command line says; `options` are the flags of the command itself."""

    config: ml_collections.ConfigDict | None
    workdir: str | None
    options: dict[str, str]


def parse(arguments: list[str], options: tuple[str, ...] = ()) -> Arguments:
    """Reads a command line.

    Raises:
      ValueError: anything is not understood; names it, and the nearest right thing.
    """
    given: dict[str, str] = {}
    overrides: list[tuple[str, str]] = []
    known = ("config", "workdir", *options)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--")
        if not flag.startswith("--") or not equals:
            raise ValueError(f"{argument!r} is not of the form --name=value{_flag(name, known)}")
        if name.startswith("config."):
            overrides.append((name.removeprefix("config."), value))
        elif name in known:
            given[name] = value
        else:
            raise ValueError(f"no flag --{name}{_flag(name, known)}")
    config = load_config(given["config"]) if "config" in given else None
    if overrides and config is None:
        raise ValueError(f"--config.{overrides[0][0]} needs --config=FILE before it")
    for path, value in overrides:
        assert config is not None
        override(config, path, value)
    chosen = {name: given[name] for name in options if name in given}
    return Arguments(config, given.get("workdir"), chosen)


def _flag(name: str, known: tuple[str, ...]) -> str:
    return nearest(name, known).replace("'", "--", 1).replace("'", "")


def load_config(spec: str) -> ml_collections.ConfigDict:
    """The config of FILE or FILE:VARIANT.

    Raises:
      ValueError: no such file or variant.
    """
    name, _, variant = spec.partition(":")
    path = Path(name)
    if not path.is_file():
        found = sorted(map(str, path.parent.glob("[!_]*.py"))) or available()
        raise ValueError(f"no config file {name!r}{nearest(name, found)}")
    loaded = importlib.util.spec_from_file_location(path.stem, path)
    if loaded is None or loaded.loader is None:
        raise ValueError(f"{name!r} is no Python file")
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(f"{name!r} has no get_config(variant)")
    if variant not in ("", *module.VARIANTS):
        raise ValueError(f"{name} has no variant {variant!r}{nearest(variant, module.VARIANTS)}")
    config: ml_collections.ConfigDict = module.get_config(variant)
    return config


def available() -> list[str]:
    """The config files of the repository."""
    return sorted(str(path) for path in CONFIGS.glob("[!_]*.py"))


def override(config: ml_collections.ConfigDict, path: str, text: str) -> None:
    """Sets one field, to a value of the type it has.

    Raises:
      ValueError: no such field, or no such value.
    """
    place = config
    *parents, name = path.split(".")
    for parent in parents:
        place = _field(place, parent, path)
        if not isinstance(place, ml_collections.ConfigDict):
            raise ValueError(f"--config.{path}: {parent!r} has no fields")
    before = _field(place, name, path)
    if isinstance(before, ml_collections.ConfigDict):
        raise ValueError(f"--config.{path} is a group of fields{nearest('', before)}")
    with place.unlocked(), place.ignore_type():
        place[name] = _value(text, before, path)


def _field(place: ml_collections.ConfigDict, name: str, path: str) -> Any:
    if name not in place:
        raise ValueError(f"config has no field {path!r}{nearest(name, place)}")
    return place[name]


def _value(text: str, before: Any, path: str) -> Any:
    if isinstance(before, str) and text != "None":
        return text
    try:
        value = (
            float(text)
            if text.lstrip("-") in ("inf", "nan")
            else ast.literal_eval(
                {"true": "True", "false": "False", "none": "None"}.get(text.lower(), text)
            )
        )
    except (ValueError, SyntaxError):
        value = text
    right: dict[type, Callable[[Any], bool]] = {
        bool: lambda v: isinstance(v, bool),
        int: lambda v: v is None or (isinstance(v, int) and not isinstance(v, bool)),
        float: lambda v: v is None or (isinstance(v, (int, float)) and not isinstance(v, bool)),
        tuple: lambda v: isinstance(v, (tuple, list)),
    }
    if type(before) in right and not right[type(before)](value):
        raise ValueError(f"--config.{path}={text} is no {type(before).__name__}, as {before!r} is")
    return float(value) if isinstance(before, float) and value is not None else value


def command(main: Callable[[list[str]], int]) -> None:
    """Runs a command; a user's mistake is one line and exit code 2, Ctrl-C is 130."""
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
