"""Generates or downloads a data set ahead of time.

python -m dbjax.data speech_frames --num-frames=300000 --num-states=128
python -m dbjax.data mnist
"""

from __future__ import annotations

import argparse
import logging
import sys

from dbjax import files
from dbjax.data.registry import IN_MEMORY, OWN, default_data_dir, load, prepare
from dbjax.signals import exit_code


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 2 after an error, 128 + n after signal n."""
    parser = argparse.ArgumentParser(
        prog="python -m dbjax.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help=f"{', '.join(OWN)}, or a TFDS data set")
    parser.add_argument(
        "--data-dir",
        help="folder of prepared data; default: $DBJAX_DATA_DIR, or else ~/.cache/dbjax/data",
    )
    parser.add_argument(
        "--num-frames", type=int, help="speech_frames: number of frames; default: 300000"
    )
    parser.add_argument(
        "--num-states", type=int, help="speech_frames: number of classes; default: 128"
    )
    parser.add_argument(
        "--seed", type=int, help="speech_frames: seed of the utterances; default: 0"
    )
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        options = _options(chosen)
        data_dir = _data_dir(chosen)
        prepare(chosen.name, data_dir)
        splits = load(chosen.name, data_dir=data_dir, **options)
    except ValueError as error:
        print(f"python -m dbjax.data: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = error.filename or chosen.data_dir
        print(f"python -m dbjax.data: {error.strerror or error}: {where}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("interrupted: no partial data was left behind", file=sys.stderr)
        return exit_code(*interrupt.args)
    print(
        f"{splits.name}: {len(splits.train)} training and {len(splits.test)} hold-out examples "
        f"of {splits.num_classes} classes, in "
        f"{'memory: nothing is written to disk' if chosen.name in IN_MEMORY else data_dir}"
    )
    return 0


def _options(chosen: argparse.Namespace) -> dict[str, int]:
    """The data set options that were given on the command line."""
    names = ("num_frames", "num_states", "seed")
    given = {name: getattr(chosen, name) for name in names if getattr(chosen, name) is not None}
    if given and chosen.name != "speech_frames":
        flag = next(iter(given)).replace("_", "-")
        raise ValueError(f"--{flag} is for speech_frames only: leave it out for {chosen.name!r}")
    return given


def _data_dir(chosen: argparse.Namespace) -> str:
    """The data set's folder, which is created unless the data is generated in memory."""
    data_dir: str = default_data_dir() if chosen.data_dir is None else chosen.data_dir
    if chosen.name in IN_MEMORY:
        return data_dir
    files.prepare(data_dir, "--data-dir")
    return data_dir


if __name__ == "__main__":
    sys.exit(main())
