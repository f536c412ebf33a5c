"""Rule 7, for every runtime: an error that nobody awaits ends the run."""

import pytest


async def bad(node):
    await node.sleep(0.01)
    raise OverflowError("lost")


async def endless(node):
    while True:
        await node.sleep(0.01)


def require_end_by_lost_error(runtime, until_s):
    runtime.spawn("endless", endless)
    runtime.spawn("bad", bad)
    with pytest.raises(OverflowError, match="lost"):
        runtime.run(until_s=until_s)
