"""Recognises what a folder contains, so that no command mixes its files with another's."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dbjax.run_dir import EVENTS, METRICS, SUMMARY
from experiments.saved import CONFIG

SWEEP, STUDY = "sweep.json", "study.db"
SCHEDULE = "schedule.npz"
CHECKPOINTS = "checkpoints"
Kind = Literal["a run", "a sweep", "a schedule", "figure3", "figure4", "figure5", "runs"]
_FIGURES = ("figure3", "figure4", "figure5")
# Files of a run besides its config. If that is missing, they belong to another program.
OF_A_RUN = (METRICS, SUMMARY, EVENTS, CHECKPOINTS, "params", "tensorboard", "trace.json")


def require_place(folder: str | Path, kind: Kind) -> None:
    """Raises ValueError if a command must not write to a folder.

    Args:
      folder: the workdir; may be missing.
      kind: what the command writes; "runs" stands for several runs in subfolders.

    Raises:
      ValueError: the folder contains something of another kind, or is inside a run or a sweep.
    """
    if not str(folder).strip():
        return  # `prepare` reports it
    folder = Path(folder)
    have = _kind(folder)
    of_figure = kind == "runs" and have in _FIGURES  # the runs that a figure is drawn from
    if have not in (None, kind) and not of_figure:
        raise ValueError(
            f"workdir {str(folder)!r} holds {have}, whose files would be mixed with those of "
            f"{kind}: give another --workdir"
        )
    for outer in folder.absolute().parents:
        if (inside := _kind(outer)) == "a sweep" or (inside == "a run" and _ours(outer)):
            raise ValueError(
                f"workdir {str(folder)!r} is inside {inside}, {str(outer)!r}: give a --workdir "
                "outside it"
            )
    if have is None and kind in ("a run", "a sweep"):
        _require_nothing_of_runs(folder)


def _kind(folder: Path) -> str | None:
    if (folder / SWEEP).is_file() or (folder / STUDY).is_file():
        return "a sweep"
    if (folder / CONFIG).is_file():
        return "a run"
    if (folder / SCHEDULE).is_file():
        return "a schedule"
    return next((name for name in _FIGURES if (folder / f"{name}.csv").is_file()), None)


def _ours(folder: Path) -> bool:
    """Whether a folder with a config.json is a run's; other programs write such files too."""
    return (folder / METRICS).is_file() or (folder / CHECKPOINTS).is_dir()


def _require_nothing_of_runs(folder: Path) -> None:
    """Raises ValueError if a run would delete files of the folder that are not a run's.

    An empty checkpoints folder is accepted: a run leaves one if it ends before its first row.
    """
    for name in OF_A_RUN:
        path = folder / name
        empty = name == CHECKPOINTS and path.is_dir() and not any(path.iterdir())
        if path.exists() and not empty:
            raise ValueError(
                f"workdir {str(folder)!r} holds {name!r} without the {CONFIG} of a run: it may "
                "belong to another program; give another --workdir, or delete it"
            )
    inner = [path.parent for at in ("*", "*/*") for path in folder.glob(f"{at}/{CONFIG}")]
    if found := sorted(filter(_ours, inner)):
        raise ValueError(
            f"workdir {str(folder)!r} holds runs in subfolders, such as "
            f"{str(found[0])!r}: give one of those, or a new folder"
        )
