"""The shape of the house: imports point down, and `import dbjax` stays light."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest


def modules(*tops):
    return {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): path
        for top in tops
        for path in Path(top).rglob("*.py")
    }


MODULES = modules("dbjax")


def imported(path):
    """Modules that a file imports, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def graph(paths):
    """For each module those of the others that it imports, by their longest names."""
    found = {}
    for module, path in paths.items():
        names = set(imported(path)) & paths.keys() - {module}
        longer = {name.rpartition(".")[0] for name in names}  # `from package import module`
        found[module] = {n for n in names if n not in longer or paths[n].name != "__init__.py"}
    return found


def circle(edges):
    """Modules that import each other in a circle, or None."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return path[path.index(module) :]
        if module not in done:
            path.append(module)
            found = next(filter(None, map(visit, sorted(edges[module]))), None)
            if found:
                return found
            done.add(path.pop())
        return None

    return next(filter(None, map(visit, sorted(edges))), None)


def test_no_modules_import_each_other_in_a_circle():
    assert circle(graph(modules("dbjax", "experiments", "configs", "benchmarks"))) is None


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c"]


GRAPH = {module: set(imported(path)) for module, path in MODULES.items()}


def layer(name):
    return {m: i for m, i in GRAPH.items() if m == name or m.startswith(f"{name}.")}


def within(names, *allowed):
    return all(
        any(name == a or name.startswith(f"{a}.") for a in allowed)
        for name in names if name.startswith("dbjax.")
    )  # fmt: skip


SERVER = ["dbjax.parameter_server", "dbjax.errors", "dbjax.optim", "dbjax.types",
          "dbjax.runtime.interface", "dbjax.runtime.joint", "dbjax.runtime.node_names",
          "dbjax.model_parallel.sharding"]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("dbjax.arguments", []),
        ("dbjax.files", ["dbjax.errors"]),
        ("dbjax.runtime", ["dbjax.runtime", "dbjax.arguments", "dbjax.errors"]),
        ("dbjax.runtime.futures", []),
        ("dbjax.runtime.joint", []),
        ("dbjax.runtime.interface", ["dbjax.runtime.futures", "dbjax.runtime.context"]),
        *[(f"dbjax.runtime.{name}",
           [f"dbjax.runtime.{name}", "dbjax.arguments", "dbjax.errors",
            *(f"dbjax.runtime.{part}" for part in ("cluster", "context", "event_log", "futures",
              "interface", "node_names", "recording", "step_time", "trace"))])
          for name in ("virtual", "threads")],
        ("dbjax.parameter_server", SERVER),
        ("dbjax.model_parallel", ["dbjax.model_parallel", "dbjax.types"]),
        *[(f"dbjax.costs.{name}", ["dbjax.costs"])
          for name in ("hlo", "flops", "traffic", "collectives", "program")],
        ("dbjax.costs", ["dbjax.costs", "dbjax.runtime.cluster", "dbjax.runtime.step_time"]),
        ("dbjax.optim", ["dbjax.optim"]),
        ("dbjax.models", ["dbjax.models", "dbjax.arguments", "dbjax.types",
                          "dbjax.model_parallel"]),
        ("dbjax.data", ["dbjax.data", "dbjax.arguments", "dbjax.files",
                        "dbjax.signals", "dbjax.types"]),
        ("dbjax.task", ["dbjax.arguments", "dbjax.data", "dbjax.model_parallel.sharding",
                        "dbjax.optim", "dbjax.types"]),
        ("dbjax.algorithms", ["dbjax.algorithms", "dbjax.program", "dbjax.task",
                              "dbjax.arguments", "dbjax.data.stream", "dbjax.data.portions",
                              "dbjax.runtime.trace", *SERVER]),
    ],
)  # fmt: skip
def test_imports_point_down(name, allowed):
    for module, names in layer(name).items():
        assert within(names, *allowed), (module, sorted(names))


def test_only_rays_actors_use_asyncio():
    using = [m for m, names in GRAPH.items() if {"asyncio"} & {n.split(".")[0] for n in names}]
    assert using == ["dbjax.runtime.ray.process"]


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
