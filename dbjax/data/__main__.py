"""Makes or fetches a data set ahead of time.

python -m dbjax.data speech_frames --num-frames=300000 --num-states=128
python -m dbjax.data mnist
"""

from __future__ import annotations

import argparse
import logging
import sys

from dbjax.data.registry import OWN, default_data_dir, load, prepare
from dbjax.interrupts import exit_code


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dbjax.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help=f"{', '.join(OWN)}, or a data set of TFDS")
    parser.add_argument("--data-dir", default=default_data_dir(), help="default: %(default)s")
    parser.add_argument("--num-frames", type=int, default=300_000, help="speech_frames: how many")
    parser.add_argument("--num-states", type=int, default=128, help="speech_frames: classes")
    parser.add_argument("--seed", type=int, default=0, help="speech_frames: of what is said")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = {}
    if chosen.name == "speech_frames":
        options = {k: getattr(chosen, k) for k in ("num_frames", "num_states", "seed")}
    try:
        prepare(chosen.name, chosen.data_dir)
        splits = load(chosen.name, data_dir=chosen.data_dir, **options)
    except ValueError as error:
        print(f"python -m dbjax.data: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("interrupted: nothing half-made is left", file=sys.stderr)
        return exit_code(*interrupt.args)
    print(
        f"{splits.name}: {len(splits.train)} training and {len(splits.test)} hold-out examples "
        f"of {splits.num_classes} classes, in {chosen.data_dir}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
