"""Loads and prepares data sets by name."""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dbjax.arguments import keyword_hints, require_known, require_seed
from dbjax.data import images
from dbjax.data.quadratic import quadratic
from dbjax.data.speech import load as speech
from dbjax.data.splits import Splits

OWN: dict[str, Callable[..., Splits]] = {
    "speech_frames": speech.load,
    "digits": images.digits,
    "synthetic": images.synthetic,
    "quadratic": quadratic,
}
IN_MEMORY = frozenset({"digits", "synthetic", "quadratic"})  # these need no folder


def default_data_dir() -> str:
    """The folder of prepared data: $DBJAX_DATA_DIR if set, else `~/.cache/dbjax/data`."""
    return os.environ.get("DBJAX_DATA_DIR") or str(Path.home() / ".cache" / "dbjax" / "data")


def load(name: str, *, data_dir: str | None = None, **options: Any) -> Splits:
    """Loads a data set into memory.

    The four data sets used last are cached, so that repeated calls return the same object.

    Args:
      name: "speech_frames" (generated on first use), "digits", "synthetic", "quadratic", or the
        name of a TFDS classification data set that has been prepared in `data_dir`.
      data_dir: the folder of prepared data; None: `default_data_dir()`.
      **options: the keyword arguments of the data set's function in `OWN`, or of
        `images.tfds_images` for a TFDS data set.

    Returns:
      The training and hold-out examples.

    Raises:
      ValueError: the name or an option is unknown, or the data is missing or damaged; the message
        says what to do.
    """
    require_options(name, **options)
    return _loaded(name, data_dir or default_data_dir(), tuple(sorted(options.items())))


def require_options(name: str, **options: Any) -> None:
    """Raises ValueError if the data set `name` lacks one of the options, or the seed is invalid."""
    require_known(f"data {name!r}", options, option_hints(name))
    if "seed" in options:
        require_seed(f"data {name!r}: seed", options["seed"])


def option_hints(name: str) -> dict[str, Any]:
    """Returns the option names of a data set, each with its type annotation."""
    return keyword_hints(OWN.get(name, images.tfds_images))


@functools.lru_cache(maxsize=4)
def _loaded(name: str, data_dir: str, options: tuple[tuple[str, Any], ...]) -> Splits:
    with _readable(name, data_dir):
        if name in OWN:
            return OWN[name](data_dir, **dict(options))
    with _hinted(name), _readable(name, data_dir):
        return images.tfds_images(name, data_dir, **dict(options))


def prepare(name: str, data_dir: str) -> None:
    """Downloads a TFDS data set; does nothing for the data sets of dbjax itself.

    Args:
      name: the name of the data set.
      data_dir: the folder to store it in.

    Raises:
      ValueError: there is no such data set, or it cannot be downloaded or prepared.
    """
    if name not in OWN:
        with _hinted(name):
            images.prepare(name, data_dir)


@contextlib.contextmanager
def _readable(name: str, data_dir: str) -> Iterator[None]:
    """Turns library errors about truncated or damaged files into a one-line ValueError."""
    try:
        yield
    except (RuntimeError, OSError, IndexError) as error:
        where = str(Path(data_dir) / name)
        raise ValueError(
            f"data {name!r} in {where!r} cannot be read and may be damaged: delete that folder to "
            f"have it made again ({' '.join(str(error).split())[:120]})"
        ) from error


@contextlib.contextmanager
def _hinted(name: str) -> Iterator[None]:
    """Adds the most similar name of dbjax's own data sets to an error."""
    try:
        yield
    except ValueError as error:
        close = difflib.get_close_matches(name, OWN, 1, 0.5)
        hint = f"; nearest in dbjax: {close[0]!r}" if close else ""
        raise ValueError(f"{error}{hint}") from error
