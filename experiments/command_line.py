"""--config=FILE[:VARIANT] --workdir=DIR --config.FIELD=VALUE, with errors of one line."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import logging
import math
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import ml_collections

from dbjax.arguments import describe, fits, nearest
from dbjax.interrupts import exit_code, heard
from experiments.defaults import defaults, flat

CONFIGS = Path("configs")
OPEN = {  # group of arguments -> the field that says whose
    "options": "algorithm",
    "rule": "rule.name",
    "data": "data.name",
    "model": "model.name",
}
HINTS = {
    "checkpoint.every_s": "of the run's clock; none: not by time",
    "checkpoint.every_updates": "none: not by their number",
    "checkpoint.keep": "of the latest; 0: none are written",
    "cluster.compute_s": "seconds, or costs: of the compiled program",
    "cut.devices": "that each replica's network is cut over",
    "cut.host_devices": "that JAX makes of CPUs",
    "event_log": "that experiments.replay does the run again from; none: unless time is virtual",
    "cut.how": "units, alternating, tiles; none: the paper's",
    "ray.address": "auto, local, HOST:PORT",
    "runtime": "virtual, threads, ray",
}
WORDS = {"cluster.compute_s": ("costs",)}  # numbers that may also be one of these
_NULLABLE = frozenset(name for name, value in defaults().items() if value is None)


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
    """How an error ends that names the nearest flag, or field of a config."""
    names = {field: f"--config.{field}" for field in flat(defaults().to_dict())}
    names |= {flag: f"--{flag}" for flag in known}
    close = difflib.get_close_matches(name, names, 1)
    return f"; nearest: {names[close[0]]}" if close else nearest("", [f"--{k}" for k in known])


def load_config(spec: str) -> ml_collections.ConfigDict:
    """The config of FILE or FILE:VARIANT.

    Raises:
      ValueError: no such file or variant.
    """
    name, _, variant = spec.partition(":")
    module = load_module(name, "config", CONFIGS)
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(f"{name!r} has no get_config(variant)")
    if variant not in ("", *module.VARIANTS):
        raise ValueError(f"{name} has no variant {variant!r}{nearest(variant, module.VARIANTS)}")
    config: ml_collections.ConfigDict = module.get_config(variant)
    return config


def load_module(name: str, what: str, folder: Path) -> types.ModuleType:
    """The module of a Python file.

    Raises:
      ValueError: there is none; names the nearest beside it, or in `folder`.
    """
    path = Path(name)
    if not path.is_file():
        found = available(path.parent) or available(folder)
        raise ValueError(f"no {what} file {name!r}{nearest(name, found)}")
    loaded = importlib.util.spec_from_file_location(path.stem, path)
    if loaded is None or loaded.loader is None:
        raise ValueError(f"{name!r} is no Python file")
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    return module


def integer(options: Mapping[str, str], name: str, default: int, least: int = 1) -> int:
    """The number of a flag of the command itself.

    Raises:
      ValueError: it is none, or below `least`.
    """
    text = options.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"--{name}={text} must be an integer of at least {least}")
    return int(text)


def available(folder: Path = CONFIGS) -> list[str]:
    """The config files of the repository."""
    return sorted(str(path) for path in folder.glob("[!_]*.py"))


def override(config: ml_collections.ConfigDict, path: str, text: str) -> None:
    """Sets one field, to a value of the type it has.

    A group in `OPEN` holds arguments of what it names, so it takes any field; the library
    refuses wrong ones. Naming something else drops the arguments of what it named before.

    Raises:
      ValueError: no such field, or no such value.
    """
    *parents, name = path.split(".")
    place = _group(config, parents, path)
    new = ".".join(parents) in OPEN and name not in place
    before = None if new else _field(place, name, path)
    if isinstance(before, ml_collections.ConfigDict):
        raise ValueError(f"--config.{path} is a group of fields{nearest('', before)}")
    value = _value(text, before, path)
    if value != before:
        _drop_arguments(config, path)
    place = _group(config, parents, path)
    with place.unlocked(), place.ignore_type():
        place[name] = value


def _group(
    config: ml_collections.ConfigDict, parents: list[str], path: str
) -> ml_collections.ConfigDict:
    place = config
    for parent in parents:
        place = _field(place, parent, path)
        if not isinstance(place, ml_collections.ConfigDict):
            raise ValueError(f"--config.{path}: {parent!r} has no fields")
    return place


def _drop_arguments(config: ml_collections.ConfigDict, path: str) -> None:
    """What `path` names is about to change: empties the group of its arguments."""
    for group, named_by in OPEN.items():
        if path == named_by:
            with config.unlocked(), config.ignore_type():
                config[group] = ml_collections.ConfigDict()


def _field(place: ml_collections.ConfigDict, name: str, path: str) -> Any:
    if name not in place:
        raise ValueError(f"config has no field {path!r}{nearest(name, place)}")
    return place[name]


def _value(text: str, before: Any, path: str) -> Any:
    """Reads a value like the one before; None only where that is a default."""
    if (isinstance(before, str) and path not in WORDS) or text in WORDS.get(path, ()):
        return text
    try:
        words: dict[str, Any] = {"true": True, "false": False, "none": None, "inf": math.inf}
        value = words[text.lower()] if text.lower() in words else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if before is None or (value is None and path in _NULLABLE):
        return value
    if path in WORDS and fits(value, float):
        return float(value)
    if not fits(value, type(before)):
        also = "".join(f", or {word}" for word in WORDS.get(path, ()))
        raise ValueError(
            f"--config.{path}={text} must be {describe(type(before))}, as {before!r} is{also}"
        )
    return float(value) if isinstance(before, float) else value


@final
class _Terminal(logging.Handler):
    """Prints to sys.stderr as it is then: above a live line, where one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def log_to_terminal() -> None:
    """What the library says of a run, without times or levels."""
    logging.basicConfig(format="%(message)s", handlers=[_Terminal()])
    logging.getLogger("dbjax").setLevel(logging.INFO)


def command(main: Callable[[list[str]], int]) -> None:
    """Runs a command; a mistake, or a full disk, is one line and exit code 2.

    Ctrl-C is 130, SIGTERM 143.
    """
    try:
        with heard():
            code = main(sys.argv[1:])
        sys.exit(code)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or 'a file'}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(exit_code(*interrupt.args))
