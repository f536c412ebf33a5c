"""What the types catch: a forgotten await, a wrong argument, a wrong service."""

import subprocess
import sys

import pytest

SNIPPET = """
from dbjax.runtime import Handle, Node
from dbjax.store import Shard, Sharded, Snapshot

async def client(node: Node, store: Sharded[Shard], shard: Handle[Shard]) -> Snapshot:
    {line}
    return await shard.call(Shard.fetch, node.name)
"""
LINES = {
    "await store.each(Shard.report)": None,
    "store.each(Shard.report)": "unused-awaitable",
    "node.sleep(1.0)": "unused-awaitable",
    "await shard.call(Shard.fetch)": "call-overload",
    "await shard.call(Shard.fetch, 3)": "call-overload",
    "await store.pull(Shard.report)": "arg-type",
}


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
def test_mypy_says_so(line, tmp_path):
    path = tmp_path / "snippet.py"
    path.write_text(SNIPPET.format(line=line))
    done = subprocess.run([sys.executable, "-m", "mypy", str(path)], capture_output=True, text=True)
    if LINES[line] is None:
        assert done.returncode == 0, done.stdout
    else:
        assert f"[{LINES[line]}]" in done.stdout, done.stdout
