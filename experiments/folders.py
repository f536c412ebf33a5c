"""What lies in a folder, so that no command mixes its files with those of another."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dbjax.run_dir import EVENTS, METRICS, SUMMARY
from experiments.saved import CONFIG

SWEEP, STUDY = "sweep.json", "study.db"
CHECKPOINTS = "checkpoints"
Kind = Literal["a run", "a sweep", "figure3", "figure4", "figure5", "runs"]
_FIGURES = ("figure3", "figure4", "figure5")
# What a run leaves, beside its config; where that is missing, they are somebody else's.
OF_A_RUN = (METRICS, SUMMARY, EVENTS, CHECKPOINTS, "params", "tensorboard", "trace.json")


def require_place(folder: str | Path, kind: Kind) -> None:
    """Refuses a folder where files would be mixed.

    Args:
      kind: of what is to be left there; "runs": runs, each in a folder of its own.

    Raises:
      ValueError: there is something of another kind, or it lies inside of a run or a sweep.
    """
    if not str(folder).strip():
        return  # `prepare` says so
    folder = Path(folder)
    have = _kind(folder)
    background = kind == "runs" and have in _FIGURES  # runs and what is drawn of them
    if have not in (None, kind) and not background:
        raise ValueError(
            f"workdir {str(folder)!r} holds {have}, whose files would be mixed with those of "
            f"{kind}: give another --workdir"
        )
    for outer in folder.absolute().parents:
        if (inside := _kind(outer)) == "a sweep" or (inside == "a run" and _ours(outer)):
            raise ValueError(
                f"workdir {str(folder)!r} lies inside of {inside}, {str(outer)!r}: give a "
                "--workdir outside of it"
            )
    if have is None and kind in ("a run", "a sweep"):
        _require_nothing_of_runs(folder)


def _kind(folder: Path) -> str | None:
    if (folder / SWEEP).is_file() or (folder / STUDY).is_file():
        return "a sweep"
    if (folder / CONFIG).is_file():
        return "a run"
    return next((name for name in _FIGURES if (folder / f"{name}.csv").is_file()), None)


def _ours(folder: Path) -> bool:
    """Whether a folder with a config has more of a run: other programs have such files too."""
    return (folder / METRICS).is_file() or (folder / CHECKPOINTS).is_dir()


def _require_nothing_of_runs(folder: Path) -> None:
    """A run deletes what lies in its place, which must be its own.

    An empty folder of checkpoints is what a run leaves that ended before it had a first row.
    """
    for name in OF_A_RUN:
        path = folder / name
        empty = name == CHECKPOINTS and path.is_dir() and not any(path.iterdir())
        if path.exists() and not empty:
            raise ValueError(
                f"workdir {str(folder)!r} holds {name!r} without the {CONFIG} of a run: it may be "
                "of another program; give another --workdir, or delete it"
            )
    inner = [path.parent for at in ("*", "*/*") for path in folder.glob(f"{at}/{CONFIG}")]
    if found := sorted(filter(_ours, inner)):
        raise ValueError(
            f"workdir {str(folder)!r} holds runs in folders of their own, such as "
            f"{str(found[0])!r}: give one of those, or a new one"
        )
