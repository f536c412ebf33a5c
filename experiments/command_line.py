"""--config=FILE[:VARIANT] --workdir=DIR --config.FIELD=VALUE, with errors of one line."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Literal, final

import ml_collections

from dbjax.signals import exit_code, reliable_interrupt
from experiments.fields import NEAR, assign_texts, known, near
from experiments.load import CONFIGS as CONFIGS
from experiments.load import available as available
from experiments.load import load_config as load_config

HINTS = {
    "checkpoint.every_s": "of the run's clock; none: not by time",
    "checkpoint.every_updates": "none: not by their number",
    "checkpoint.keep": "of the latest; 0: none are written",
    "cluster.compute_s": "seconds, or costs: of the compiled program",
    "sharding.devices": "that each replica's network is cut over",
    "sharding.host_devices": "that JAX makes of CPUs",
    "event_log": "that experiments.replay does the run again from; none: unless time is virtual",
    "sharding.how": "units, alternating, tiles; none: the paper's",
    "ray.address": "local: a cluster for this run only; auto or HOST:PORT: joins one",
    "runtime": "virtual, threads, ray",
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the command line says.

    Attributes:
      config: of --config=FILE, with the changes.
      options: the flags of the command itself.
      changes: fields of --config.FIELD=VALUE.
    """

    config: ml_collections.ConfigDict | None
    workdir: str | None
    options: dict[str, str]
    changes: dict[str, str]

    def config_and_workdir(self) -> tuple[ml_collections.ConfigDict, str]:
        """Of a command that cannot do without.

        Raises:
          ValueError: one is not given.
        """
        if self.config is None or self.workdir is None:
            raise ValueError("needs --config=FILE and --workdir=DIR; --help says more")
        return self.config, self.workdir


def parse(
    arguments: list[str],
    options: tuple[str, ...] = (),
    *,
    config: Literal["file", "fields", "none"] = "file",
    workdir: bool = True,
    asked: tuple[str, ...] = (),
) -> Arguments:
    """Reads a command line. The order of flags means nothing; of one given twice the last counts.

    Args:
      options: flags of the command itself.
      config: what it takes: --config=FILE and --config.FIELD=VALUE, the fields only, neither.
      workdir: whether it takes --workdir=DIR.
      asked: fields that the command asks for, whatever the config says.

    Raises:
      ValueError: anything is not understood; names it, and the nearest right thing.
    """
    own = (*(["config"] if config == "file" else []), *(["workdir"] if workdir else []), *options)
    given: dict[str, str] = {}
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--")
        is_field = name.startswith("config.") and config != "none"
        if not flag.startswith("--") or not equals:
            said = _nearest(name, "VALUE", own, _fields(arguments, config))
            raise ValueError(f"{argument!r} is not of the form --name=value{said}")
        if name not in own and not is_field:
            said = _nearest(name, value, own, _fields(arguments, config))
            raise ValueError(f"no flag --{name}{said}")
        if not value.strip():
            raise ValueError(f"--{name}= is empty: give it a value, or leave it away")
        given[name] = value
    changes = {
        name.removeprefix("config."): value
        for name, value in given.items()
        if name.startswith("config.")
    }
    file = given.get("config")
    if changes and config == "file" and file is None:
        raise ValueError(f"--config.{next(iter(changes))} needs --config=FILE beside it")
    chosen = {name: given[name] for name in options if name in given}
    loaded = None if file is None else load_config(file)
    if loaded is not None:
        assign_texts(loaded, changes, asked)
    return Arguments(loaded, given.get("workdir"), chosen, changes)


def _fields(arguments: list[str], config: str) -> Collection[str]:
    """What a flag may have meant: fields of the config that is given, if a command takes any."""
    if config == "none":
        return ()
    file = next((a.partition("=")[2] for a in arguments if a.startswith("--config=")), None)
    try:
        return known(load_config(file) if file and config == "file" else None)
    except ValueError:  # told when that is all that is wrong
        return known(None)


def _nearest(name: str, value: str, own: Collection[str], fields: Collection[str]) -> str:
    """How an error ends that names the nearest flag or field; if none is near, the flags."""
    text = f"={value}" if value else ""
    is_field = name.startswith("config.") and bool(fields)
    name = name.removeprefix("config.") if is_field else name
    meant = near(name, fields)
    flags = [] if is_field else difflib.get_close_matches(name.replace("_", "-"), own, 1, NEAR)
    exact = any(path.endswith(name.replace("-", "_")) for path in meant)
    if meant and (exact or not flags):
        return f"; nearest: {' or '.join(f'--config.{path}{text}' for path in meant[:3])}"
    if flags:
        return f"; nearest: --{flags[0]}{text}"
    return f"; there are: {', '.join(f'--{flag}' for flag in own)}" if own else "; it takes none"


def override(config: ml_collections.ConfigDict, path: str, text: str) -> None:
    """Sets one field, to the value that a text stands for.

    Raises:
      ValueError: there is no such field, it cannot have that value, or it has no effect.
    """
    assign_texts(config, {path: text})


def integer(options: Mapping[str, str], name: str, default: int, least: int = 1) -> int:
    """The number of a flag of the command itself.

    Raises:
      ValueError: it is none, or below `least`.
    """
    text = options.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"--{name}={text} must be an integer of at least {least}")
    return int(text)


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
        with reliable_interrupt():
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
