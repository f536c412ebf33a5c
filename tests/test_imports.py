"""The shape of the house: imports point down, and `import dbjax` stays light."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULES = {
    ".".join(path.with_suffix("").parts).removesuffix(".__init__"): path
    for path in Path("dbjax").rglob("*.py")
}


def imported(path):
    """Modules that a file imports, those under TYPE_CHECKING left out."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


GRAPH = {module: set(imported(path)) for module, path in MODULES.items()}


def layer(name):
    return {m: i for m, i in GRAPH.items() if m == name or m.startswith(f"{name}.")}


def within(names, *allowed):
    return all(
        any(name == a or name.startswith(f"{a}.") for a in allowed)
        for name in names if name.startswith("dbjax")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("dbjax.runtime", ["dbjax.runtime", "dbjax.errors", "dbjax.runtime.trace"]),
        ("dbjax.runtime.futures", []),
        ("dbjax.runtime.interface", ["dbjax.runtime.futures", "dbjax.runtime.context"]),
        ("dbjax.parameter_server", ["dbjax.parameter_server", "dbjax.errors", "dbjax.optim", "dbjax.runtime.interface",
                         "dbjax.types", "dbjax.model_parallel.sharding"]),
        ("dbjax.model_parallel", ["dbjax.model_parallel", "dbjax.types", "dbjax.runtime.cluster",
                            "dbjax.runtime.step_time"]),
        *[(f"dbjax.model_parallel.{name}", ["dbjax.model_parallel", "dbjax.types"])
          for name in ("cut", "halo", "tiles", "layers", "losses", "costs", "hlo")],
        ("dbjax.optim", ["dbjax.optim"]),
        ("dbjax.models", ["dbjax.models", "dbjax.arguments", "dbjax.types", "dbjax.model_parallel"]),
        ("dbjax.data", ["dbjax.data", "dbjax.arguments", "dbjax.monitoring.signals", "dbjax.types"]),
        ("dbjax.algorithms", ["dbjax.algorithms", "dbjax.parameter_server", "dbjax.optim", "dbjax.task",
                              "dbjax.types", "dbjax.runtime.interface", "dbjax.data.stream",
                              "dbjax.data.portions",
                              "dbjax.errors"]),
    ],
)  # fmt: skip
def test_imports_point_down(name, allowed):
    for module, names in layer(name).items():
        assert within(names, *allowed), (module, sorted(names))


def test_nothing_uses_asyncio():
    assert not [m for m, names in GRAPH.items() if {"asyncio"} & {n.split(".")[0] for n in names}]


@pytest.mark.parametrize(
    ("package", "where"),
    [("tensorflow_datasets", "dbjax.data"), ("orbax", "dbjax.checkpoint"),
     ("flax", "dbjax.models"), ("ml_collections", "experiments"), ("rich", "dbjax.data"),
     ("ray", "dbjax.runtime.ray")],
)  # fmt: skip
def test_heavy_packages_stay_in_their_place(package, where):
    using = {m for m, names in GRAPH.items() if package in {n.split(".")[0] for n in names}}
    assert all(m.startswith(where) for m in using), using


HEAVY = ("tensorflow_datasets", "tensorflow", "flax", "orbax", "matplotlib", "rich", "sklearn",
         "tensorboardX", "ml_collections", "asyncio.events", "torch", "ray")  # fmt: skip


def test_import_dbjax_stays_light():
    script = f"import sys, dbjax, dbjax.algorithms.downpour; print(set({HEAVY}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          check=True, env=os.environ)  # fmt: skip
    assert done.stdout.strip() in ("set()", "{'asyncio.events'}")  # jax itself imports asyncio
