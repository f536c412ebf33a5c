"""Parses --config=FILE[:VARIANT] --workdir=DIR --config.FIELD=VALUE; errors are one line."""

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
    "checkpoint.every_s": "seconds of the run's clock between checkpoints; none: not by time",
    "checkpoint.every_updates": "updates between checkpoints; none: not by updates",
    "checkpoint.keep": "number of latest checkpoints to keep; 0: writes none",
    "cluster.compute_s": "seconds for a gradient; or costs: estimates it from the compiled program",
    "sharding.devices": "number of devices that each replica's network is sharded over",
    "sharding.host_devices": "number of CPU devices that JAX presents",
    "sharding.processes": "number of processes over which a replica spreads its devices, on Ray",
    "executor": "auto, engine or compiled: how the arithmetic of virtual time is done",
    "event_log": "whether to write a log for experiments.replay; default: only in real time",
    "sharding.how": "units, alternating or tiles; none: the paper's choice for the model",
    "ray.address": "local: starts a cluster for this run; auto or HOST:PORT: joins one",
    "runtime": "virtual, threads or ray",
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A parsed command line.

    Attributes:
      config: the config of --config=FILE with the changes applied; None if not given.
      workdir: the value of --workdir; None if not given.
      options: values of the command's own flags, by name.
      changes: values of the --config.FIELD=VALUE flags, by field name.
    """

    config: ml_collections.ConfigDict | None
    workdir: str | None
    options: dict[str, str]
    changes: dict[str, str]

    def config_and_workdir(self) -> tuple[ml_collections.ConfigDict, str]:
        """Returns config and workdir, for a command that requires both.

        Raises:
          ValueError: one of them is not given.
        """
        if self.config is None or self.workdir is None:
            raise ValueError("needs --config=FILE and --workdir=DIR; see --help")
        return self.config, self.workdir


def parse(
    arguments: list[str],
    options: tuple[str, ...] = (),
    *,
    config: Literal["file", "fields", "none"] = "file",
    workdir: bool = True,
    asked: tuple[str, ...] = (),
) -> Arguments:
    """Parses a command line. Flags may come in any order; the last of equal flags counts.

    Args:
      arguments: the command line without the program's name.
      options: names of the command's own flags.
      config: whether the command takes --config=FILE and --config.FIELD=VALUE ("file"), only the
        latter ("fields"), or neither ("none").
      workdir: whether the command takes --workdir=DIR.
      asked: fields that this command itself makes use of, so that they are accepted even where the
        config gives them no effect.

    Raises:
      ValueError: a flag, field or value is wrong; the message names the nearest valid one.
    """
    own = (*(["config"] if config == "file" else []), *(["workdir"] if workdir else []), *options)
    given: dict[str, str] = {}
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--")
        is_field = name.startswith("config.") and config != "none"
        if not flag.startswith("--") or not equals:
            message = _nearest(name, "VALUE", own, _fields(arguments, config))
            raise ValueError(f"{argument!r} is not of the form --name=value{message}")
        if name not in own and not is_field:
            message = _nearest(name, value, own, _fields(arguments, config))
            raise ValueError(f"no flag --{name}{message}")
        if not value.strip():
            raise ValueError(f"--{name}= is empty: give it a value, or leave it out")
        given[name] = value
    changes = {
        name.removeprefix("config."): value
        for name, value in given.items()
        if name.startswith("config.")
    }
    file = given.get("config")
    if changes and config == "file" and file is None:
        raise ValueError(f"--config.{next(iter(changes))} needs --config=FILE as well")
    chosen = {name: given[name] for name in options if name in given}
    loaded = None if file is None else load_config(file)
    if loaded is not None:
        assign_texts(loaded, changes, asked)
    return Arguments(loaded, given.get("workdir"), chosen, changes)


def _fields(arguments: list[str], config: str) -> Collection[str]:
    """Field names to suggest for a wrong flag; none if the command takes no fields."""
    if config == "none":
        return ()
    file = next((a.partition("=")[2] for a in arguments if a.startswith("--config=")), None)
    try:
        return known(load_config(file) if file and config == "file" else None)
    except ValueError:  # the file's own error is reported once the flags are right
        return known(None)


def _nearest(name: str, value: str, own: Collection[str], fields: Collection[str]) -> str:
    """The end of an error message: the nearest flags or fields, or else all flags there are."""
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
    return (
        f"; there are: {', '.join(f'--{flag}' for flag in own)}"
        if own
        else "; this command takes none"
    )


def integer(options: Mapping[str, str], name: str, default: int, least: int = 1) -> int:
    """Returns the integer value of one of the command's own flags.

    Args:
      options: the flags, from `Arguments.options`.
      name: the name of the flag.
      default: the value if the flag is not given.
      least: the smallest valid value.

    Raises:
      ValueError: the value is not an integer, or is below `least`.
    """
    text = options.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"--{name}={text} must be an integer of at least {least}")
    return int(text)


@final
class _Terminal(logging.Handler):
    """Prints to the current sys.stderr, which rich replaces while it draws a progress bar.

    Messages therefore appear above the bar.
    """

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Leaves out pages of tracebacks of a write that failed, of which dbjax tells in one line."""
    unretrieved = record.name == "asyncio" and "orbax" in record.getMessage()
    return not unretrieved and "orbax" not in record.pathname


def log_to_terminal() -> None:
    """Shows log messages on the terminal, without times or levels, except for those of Orbax."""
    terminal = _Terminal()
    terminal.addFilter(_not_of_orbax)
    logging.basicConfig(format="%(message)s", handlers=[terminal])
    logging.getLogger("dbjax").setLevel(logging.INFO)


def command(main: Callable[[list[str]], int]) -> None:
    """Runs a command with the arguments of this process, and exits with its code.

    A user's mistake or an operating system error (a full disk) is printed in one line, with exit
    code 2. Ctrl-C exits with 130, SIGTERM with 143.

    Args:
      main: the command; takes the command line, returns the exit code.
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
