"""Writes an HTML page about one or several runs: curves, staleness, utilisation, timelines.

python -m experiments.report WORKDIR... [--out=FILE]

Each WORKDIR holds a run, which may still be in progress. The page is self-contained: it opens in
any browser, and needs no network. By default it is written to report.html in the first WORKDIR.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dbjax.files import prepare_file, write_text
from experiments.command_line import command, parse
from experiments.folders import OF_A_RUN
from experiments.report.page import is_page, page
from experiments.report.read import labels, read
from experiments.saved import CONFIG


def main(arguments: list[str]) -> int:
    """Runs the command line of `python -m experiments.report`, and returns its exit code."""
    if {"--help", "-h"} & set(arguments):
        print((__doc__ or "").strip())
        return 0
    workdirs = [argument for argument in arguments if not argument.startswith("-")]
    flags = [a for a in arguments if a.startswith("-")]
    chosen = parse(flags, ("out",), config="none", workdir=False)
    if not workdirs:
        raise ValueError("needs WORKDIR..., the folders of runs; the only flag is --out=FILE")
    workdirs = _once(workdirs)
    out = Path(chosen.options.get("out", Path(workdirs[0]) / "report.html"))
    if "out" in chosen.options:
        prepare_file(out)
    _require_free(out)
    runs = [read(*one) for one in zip(workdirs, labels(workdirs), strict=True)]
    write_text(prepare_file(out), page(runs))
    print(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB): open it in a browser")
    return 0


def _require_free(out: Path) -> None:
    """Raises ValueError if the page would overwrite a file that is not a report."""
    of_a_run = (out.parent / CONFIG).is_file() and out.name in (CONFIG, "curves.png", *OF_A_RUN)
    if of_a_run or (out.is_file() and not is_page(out)):
        raise ValueError(
            f"{str(out)!r} is {'for a file of the run' if of_a_run else 'not a report page'}: "
            "give another --out"
        )


def _once(workdirs: Sequence[str]) -> list[str]:
    """Removes duplicates, even if a folder is given under different names."""
    found: dict[Path, str] = {}
    for workdir in workdirs:
        if found.setdefault(Path(workdir).resolve(), workdir) is not workdir:
            print(f"{workdir} is given more than once: it is shown once")
    return list(found.values())


if __name__ == "__main__":
    command(main)
