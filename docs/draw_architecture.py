"""Draws docs/architecture.png from the imports in the source.

python docs/draw_architecture.py

The boxes, their subjects and their places are given here. The arrows are not: they are read from
the import statements of every file with `ast`. Where a longer path of arrows says the same, an
arrow is left out. An import that points up is drawn dashed and red.
"""

from __future__ import annotations

import ast
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib import pyplot
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "architecture.png"
HEIGHT, GAP = 0.66, 0.12


class Box(NamedTuple):
    """A box of the picture.

    Attributes:
      title: what it is called.
      subject: what it is about, in one line or two.
      parts: modules, or packages with all their modules, that it stands for.
      row: counted from the top.
      left, right: where it begins and ends, in columns.
      color: its fill.
    """

    title: str
    subject: str
    parts: tuple[str, ...]
    row: float
    left: float
    right: float
    color: str


ENTRY, METHOD, SERVER, CLUSTER, NETWORK, PLAIN = (
    "#fdebd0",
    "#d6eaf8",
    "#d5f5e3",
    "#e8daef",
    "#fcf3cf",
    "#eaecee",
)
BOXES = (
    Box(
        "experiments/",
        "commands, configs and figures; or a script of your own that calls dbjax.run",
        ("experiments",),
        0, 0, 8, ENTRY,
    ),
    Box("run_dir/", "files that a run leaves", ("dbjax.run_dir",), 1, 3, 4.9, ENTRY),
    Box(
        "train.py   replay.py",
        "dbjax.run: checks its arguments, has a program run, returns a Result",
        ("dbjax.train", "dbjax.replay"),
        2, 0, 4.9, ENTRY,
    ),
    Box(
        "executors/   schedules/   validation.py",
        "the arithmetic of a run: step by step, or as one compiled program that reads its timing",
        ("dbjax.executors", "dbjax.schedules", "dbjax.validation"),
        3, 0, 4.9, ENTRY,
    ),
    Box(
        "monitoring/",
        "evaluation, metrics, warnings, chaos",
        ("dbjax.monitoring",),
        4, 3, 4.9, ENTRY,
    ),
    Box(
        "checkpoint/",
        "what outlives a run, and exact resumption",
        ("dbjax.checkpoint",),
        5, 2.1, 4.9, ENTRY,
    ),
    Box(
        "algorithms/",
        "one file a method:\nDownpour, Sandblaster, SGD, ...",
        ("dbjax.algorithms",),
        5, 5.05, 6.7, METHOD,
    ),
    Box(
        "program.py   task.py",
        "what a method places on a runtime, and what is trained",
        ("dbjax.program", "dbjax.task"),
        6, 3, 6.7, METHOD,
    ),
    Box(
        "parameter_server/",
        "sessions of replicas, clients, shards,\nserver rules, staleness, backups",
        ("dbjax.parameter_server",),
        7, 3, 4.9, SERVER,
    ),
    Box(
        "data/",
        "mini-batches and portions,\ndata sets by name",
        ("dbjax.data",),
        7, 5.05, 6.7, NETWORK,
    ),
    Box("models/", "networks:\nspeech, vision, mlp", ("dbjax.models",), 7, 6.95, 8, NETWORK),
    Box("costs/", "what compiled\nprograms cost", ("dbjax.costs",), 7, 0, 0.85, CLUSTER),
    Box("runtime/ray/", "a process for\neach node", ("dbjax.runtime.ray",), 6, 1, 1.95, CLUSTER),
    Box(
        "runtime/threads/",
        "real time,\none process",
        ("dbjax.runtime.threads",),
        7, 1, 1.95, CLUSTER,
    ),
    Box(
        "runtime/virtual/",
        "a simulator of\nthe cluster",
        ("dbjax.runtime.virtual",),
        7, 2.0, 2.95, CLUSTER,
    ),
    Box(
        "runtime/",
        "interface: nodes, handles, futures; the description of a cluster; trace, event log",
        ("dbjax.runtime",),
        8.1, 0, 4.0, CLUSTER,
    ),
    Box("optim/", "rules, batch methods", ("dbjax.optim",), 8.1, 4.15, 5.5, NETWORK),
    Box(
        "model_parallel/",
        "a network sharded over devices",
        ("dbjax.model_parallel",),
        8.1, 5.75, 8, NETWORK,
    ),
    Box(
        "types.py   errors.py   arguments.py   files.py   signals.py   jax_version.py",
        "names of types, errors, checks of arguments, files: imported from everywhere above",
        ("dbjax.types", "dbjax.errors", "dbjax.arguments", "dbjax.files", "dbjax.signals",
         "dbjax.jax_version"),
        9.2, 0, 8, PLAIN,
    ),
)  # fmt: skip
EVERYWHERE = BOXES[-1]


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of dbjax and of experiments, and its file."""
    files = [path for top in ("dbjax", "experiments") for path in (ROOT / top).rglob("*.py")]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)
    return {name.removesuffix(".__init__"): path for name, path in zip(names, files, strict=True)}


def box_of(module: str) -> Box | None:
    """The box that a module belongs to: that of the longest name; none for `dbjax` itself.

    Raises:
      ValueError: it belongs to none: this file has to be told where it goes.
    """
    found = [
        (len(part), box)
        for box in BOXES
        for part in box.parts
        if module == part or module.startswith(f"{part}.")
    ]
    if found:
        return max(found, key=lambda pair: pair[0])[1]
    if module == "dbjax":
        return None
    raise ValueError(f"{module} is in no box of docs/draw_architecture.py: add it")


def imported(module: str) -> Iterator[str]:
    """The modules that one imports, those of the public names of `dbjax` included."""
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules() else node.module
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "dbjax":
            yield public_names().get(node.attr, "dbjax")


@functools.cache
def public_names() -> dict[str, str]:
    """Names of `dbjax/__init__.py`, and the modules that they come from."""
    tree = ast.parse(modules()["dbjax"].read_text())
    froms = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return {a.asname or a.name: node.module or "" for node in froms for a in node.names}


def arrows() -> dict[tuple[Box, Box], set[str]]:
    """Which box imports from which other one, and the modules that it imports."""
    found: dict[tuple[Box, Box], set[str]] = {}
    for module, path in modules().items():
        source = box_of(module)
        for name in imported(module):
            target = box_of(name) if name in modules() else None
            exported = path.name == "__init__.py" and name.startswith(f"{module}.")
            if source and target and source != target and not exported:
                found.setdefault((source, target), set()).add(name.rpartition(".")[2])
    return found


def without_detours(edges: set[tuple[Box, Box]]) -> set[tuple[Box, Box]]:
    """The arrows that no longer path replaces."""

    def reachable(start: Box, skip: tuple[Box, Box]) -> set[Box]:
        seen, left = set[Box](), [start]
        while left:
            here = left.pop()
            for edge in edges:
                if edge != skip and edge[0] == here and edge[1] not in seen:
                    seen.add(edge[1])
                    left.append(edge[1])
        return seen

    return {edge for edge in edges if edge[1] not in reachable(edge[0], edge)}


def draw() -> Any:
    """The figure."""
    figure, axes = pyplot.subplots(figsize=(14, 9.6))
    names = arrows()
    edges = {(a, b) for a, b in names if b != EVERYWHERE}
    up = {(a, b) for a, b in edges if a.row >= b.row}
    for box in BOXES:
        _draw_box(axes, box)
    for a, b in sorted(without_detours(edges - up)):
        _draw_down(axes, a, b)
    for a, b in sorted(up):
        _draw_up(axes, a, b, ", ".join(sorted(names[a, b])))
    axes.set_xlim(-0.08, 8.08)
    axes.set_ylim(-(BOXES[-1].row + 1.15), 0.12)
    axes.axis("off")
    said = "An arrow points from the importer to what it imports. "
    said += "Arrows that a longer path replaces, and those to the last row, are left out."
    said += " Red, dashed: an import that points up." if up else ""
    axes.text(0, -(BOXES[-1].row + 0.95), said, fontsize=10, color="#555555", va="center")
    figure.subplots_adjust(0, 0, 1, 1)
    return figure


def _draw_box(axes: Any, box: Box) -> None:
    bottom = -box.row - HEIGHT
    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(
        FancyBboxPatch(
            (box.left, bottom), box.right - box.left, HEIGHT,
            boxstyle=style, facecolor=box.color, edgecolor="#566573", linewidth=1,
        )
    )  # fmt: skip
    middle, lines = (box.left + box.right) / 2, box.subject.count("\n")
    title_y, subject_y = (
        bottom + HEIGHT * (0.79 if lines else 0.69),
        bottom + HEIGHT * (0.33 if lines else 0.3),
    )
    axes.text(middle, title_y, box.title, ha="center", va="center", fontsize=11, weight="bold")
    axes.text(
        middle, subject_y, box.subject, ha="center", va="center", fontsize=9.5, linespacing=1.15
    )


def _draw_down(axes: Any, a: Box, b: Box) -> None:
    """A straight arrow, vertical where the boxes lie above each other."""
    left, right = max(a.left, b.left), min(a.right, b.right)
    if right - left > 2 * GAP:
        x = (left + right) / 2
        begin, end = (x, -a.row - HEIGHT), (x, -b.row)
    elif a.left >= b.right - GAP:
        begin, end = (a.left + GAP, -a.row - HEIGHT), (b.right - GAP, -b.row)
    else:
        begin, end = (a.right - GAP, -a.row - HEIGHT), (b.left + GAP, -b.row)
    _arrow(axes, [begin, end], "#34495e", "-")


def _draw_up(axes: Any, a: Box, b: Box, names: str) -> None:
    """An arrow around whatever lies between, with the names of what is imported."""
    x = max(a.right, b.right) + 0.12
    y, z = -a.row - HEIGHT / 2, -b.row - HEIGHT / 2
    _arrow(axes, [(a.right, y), (x, y), (x, z), (b.right, z)], "#c0392b", (0, (4, 3)))
    axes.text(x - 0.04, z + 0.06, names, ha="right", va="bottom", fontsize=9.5, color="#c0392b")


def _arrow(axes: Any, points: list[tuple[float, float]], color: str, style: Any) -> None:
    for begin, end in itertools.pairwise(points):
        last = end == points[-1]
        axes.annotate(
            "", xy=end, xytext=begin,
            arrowprops={
                "arrowstyle": "-|>" if last else "-", "color": color, "linewidth": 1.4,
                "linestyle": style, "shrinkA": 0, "shrinkB": 1 if last else 0,
            },
        )  # fmt: skip


if __name__ == "__main__":
    matplotlib.use("Agg")
    draw().savefig(PICTURE, dpi=110)
    print(PICTURE.relative_to(ROOT))
