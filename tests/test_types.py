"""What the types catch: a forgotten await, a wrong argument, a wrong service."""

import subprocess
import sys

import pytest

SNIPPET = """
from dbjax.runtime import Handle, Node
from dbjax.parameter_server import Shard, ParameterServer, Snapshot

async def client(node: Node, server: ParameterServer[Shard], shard: Handle[Shard]) -> Snapshot:
    {line}
    return await shard.call(Shard.fetch, node.name)
"""
COORDINATOR = """
from dbjax.optim import Dots, Space
from dbjax.parameter_server.vector_client import VectorClient
from dbjax.parameter_server.vector_shard import VectorShard
from dbjax.types import Slice

async def main(space: Space, vectors: VectorClient) -> None:
    {line}
"""
LINES = {
    "await server.each(Shard.report)": None,
    "server.each(Shard.report)": "unused-awaitable",
    "node.sleep(1.0)": "unused-awaitable",
    "await shard.call(Shard.fetch)": "call-overload",
    "await shard.call(Shard.fetch, 3)": "call-overload",
    "await server.fetch(Shard.report)": "arg-type",
}


VECTORS = {  # a coordinator gets scalars, and cannot ask for more
    'replies: list[float] = await space.perform(Dots(("params",), ("params",)))': None,
    'vector: Slice = await space.perform(Dots(("params",), ("params",)))': "assignment",
    'vector: Slice = await vectors.perform(Dots(("params",), ("params",)))': "assignment",
    'await vectors.fetch(VectorShard.fetch, "coordinator")': "attr-defined",
    'await space.fetch("params")': "attr-defined",
}


def check(text, code, path):
    path.write_text(text)
    done = subprocess.run([sys.executable, "-m", "mypy", str(path)], capture_output=True, text=True)
    if code is None:
        assert done.returncode == 0, done.stdout
    else:
        assert f"[{code}]" in done.stdout, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
def test_mypy_says_so(line, tmp_path):
    check(SNIPPET.format(line=line), LINES[line], tmp_path / "snippet.py")


@pytest.mark.slow
@pytest.mark.parametrize("line", VECTORS)
def test_a_coordinator_that_asks_for_a_vector_does_not_type_check(line, tmp_path):
    check(COORDINATOR.format(line=line), VECTORS[line], tmp_path / "snippet.py")
