"""Loads config files and other Python files, the repository's or a user's own."""

from __future__ import annotations

import importlib.util
import inspect
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from dbjax.arguments import nearest
from experiments.defaults import renamed, require_whole

CONFIGS = Path("configs")


def load_config(spec: str) -> ml_collections.ConfigDict:
    """Loads a config.

    The file defines `get_config()`, or `get_config(variant)` and a tuple `VARIANTS` of valid names.
    If no variant is given, the function's default applies; if it has no default, the variant is
    the empty string.

    Args:
      spec: FILE or FILE:VARIANT.

    Raises:
      ValueError: there is no such file or variant, or the file does not define a config; the
        message says what is missing.
    """
    name, _, variant = spec.partition(":")
    module = load_module(name, "config", CONFIGS)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ValueError(
            f"config {name!r} has no get_config: define get_config(), which returns the config"
        )
    variants = _variants(module, name)
    parameters = list(inspect.signature(get_config).parameters.values())
    if variant and not parameters:
        raise ValueError(
            f"config {name!r} has no variant {variant!r}: its get_config() takes none; give "
            f"--config={name}"
        )
    if variant not in ("", *variants):
        more = nearest(variant, variants) if variants else "; list it in VARIANTS = (...)"
        raise ValueError(f"config {name!r} has no variant {variant!r}{more}")
    config = _called(get_config, name, *_arguments(parameters, variant))
    try:
        require_whole(config)
    except ValueError as error:
        raise ValueError(f"config {name!r}: {error}") from error
    made: ml_collections.ConfigDict = config
    return made


def _arguments(
    parameters: Sequence[inspect.Parameter], variant: str
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Arguments for get_config: none if no variant is named and the function requires none."""
    needs = any(
        p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters
    )
    if not variant and not needs:
        return (), {}
    first = parameters[0]
    if first.kind is first.KEYWORD_ONLY:
        return (), {first.name: variant}
    return (variant,), {}


def _variants(module: types.ModuleType, name: str) -> Sequence[str]:
    variants = getattr(module, "VARIANTS", ())
    if isinstance(variants, str) or not isinstance(variants, Sequence):
        raise ValueError(f"config {name!r}: VARIANTS={variants!r} must be a tuple of names")
    return variants


def load_module(name: str, what: str, folder: Path) -> types.ModuleType:
    """Imports a Python file.

    Args:
      name: the path of the file.
      what: what errors call the file, such as "config".
      folder: where to look for similar names if there is no such file, nor any in its own folder.

    Raises:
      ValueError: there is no such file (the message names the nearest one), or running it raises
        an error (the message names the line).
    """
    path = Path(name)
    if path.suffix == ".py" and path.is_dir():
        raise ValueError(f"{what} file {name!r} is a directory: name a file")
    if not path.is_file():
        found = available(path.parent) or available(folder)
        raise ValueError(f"no {what} file {name!r}{nearest(name, found)}")
    loaded = importlib.util.spec_from_file_location(path.stem, path)
    if loaded is None or loaded.loader is None:
        raise ValueError(f"{name!r} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(loaded)
    _called(loaded.loader.exec_module, name, (module,), {})
    return module


def available(folder: Path = CONFIGS) -> list[str]:
    """Paths of the config files directly in a folder; names that begin with "_" are left out."""
    return sorted(str(path) for path in folder.glob("[!_]*.py"))


def _called(
    function: Any, name: str, arguments: tuple[Any, ...], by_name: Mapping[str, Any]
) -> Any:
    """Calls a user's function; turns any error into a ValueError that names file and line."""
    try:
        return function(*arguments, **by_name)
    except Exception as error:
        line = _line(error, name)
        message = (
            str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        )
        asked = str(error).strip("'\"")
        if isinstance(error, AttributeError) and (now := renamed(asked)) is not None:
            message = f"the config's field {asked!r} was renamed: use {now!r}"
        place = name if line is None else f"{name}, line {line}"
        raise ValueError(f"{place}: {message}") from error


def _line(error: Exception, name: str) -> int | None:
    """The line of the file in which an error arose; None if it arose before the file ran."""
    if isinstance(error, SyntaxError) and error.filename == name:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno for f in reversed(frames) if Path(f.filename) == Path(name)), None)
