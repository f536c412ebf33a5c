"""Data sets by name."""

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
IN_MEMORY = frozenset({"digits", "synthetic", "quadratic"})  # of our own: these lie nowhere


def default_data_dir() -> str:
    """$DBJAX_DATA_DIR, or `~/.cache/dbjax/data`."""
    return os.environ.get("DBJAX_DATA_DIR") or str(Path.home() / ".cache" / "dbjax" / "data")


def load(name: str, *, data_dir: str | None = None, **options: Any) -> Splits:
    """Loads a data set into memory, once in a process.

    Args:
      name: "speech_frames" (made where it is missing), "digits", "synthetic", "quadratic", or a
        classification data set of TFDS that lies in `data_dir`.
      data_dir: where prepared data lies; None: `default_data_dir()`.
      **options: of the data set: the keyword arguments of its function in `OWN`, or
        those of `images.tfds_images`.

    Raises:
      ValueError: an unknown name or option, or missing data; says what to do.
    """
    require_options(name, **options)
    return _loaded(name, data_dir or default_data_dir(), tuple(sorted(options.items())))


def require_options(name: str, **options: Any) -> None:
    """Raises ValueError if the data set has no such option."""
    require_known(f"data {name!r}", options, option_hints(name))
    if "seed" in options:
        require_seed(f"data {name!r}: seed", options["seed"])


def option_hints(name: str) -> dict[str, Any]:
    """The options of a data set, and their types."""
    return keyword_hints(OWN.get(name, images.tfds_images))


@functools.lru_cache(maxsize=4)
def _loaded(name: str, data_dir: str, options: tuple[tuple[str, Any], ...]) -> Splits:
    with _readable(name, data_dir):
        if name in OWN:
            return OWN[name](data_dir, **dict(options))
    with _hinted(name), _readable(name, data_dir):
        return images.tfds_images(name, data_dir, **dict(options))


def prepare(name: str, data_dir: str) -> None:
    """Downloads a data set of TFDS; ours need none.

    Raises:
      ValueError: there is no such set, or it cannot be had.
    """
    if name not in OWN:
        with _hinted(name):
            images.prepare(name, data_dir)


@contextlib.contextmanager
def _readable(name: str, data_dir: str) -> Iterator[None]:
    """What the libraries below say of files that are cut off or damaged, in one line."""
    try:
        yield
    except (RuntimeError, OSError, IndexError) as error:
        where = str(Path(data_dir) / name)
        raise ValueError(
            f"data {name!r} in {where!r} cannot be read, it may be damaged: delete that folder, "
            f"and it is made again ({' '.join(str(error).split())[:120]})"
        ) from error


@contextlib.contextmanager
def _hinted(name: str) -> Iterator[None]:
    """Adds to an error the nearest of our own names."""
    try:
        yield
    except ValueError as error:
        close = difflib.get_close_matches(name, OWN, 1, 0.5)
        hint = f"; nearest of our own: {close[0]!r}" if close else ""
        raise ValueError(f"{error}{hint}") from error
