"""Programs that run in a process of their own: there the number of devices can be chosen."""

import json
import os
import pathlib
import subprocess
import sys

import jaxlib

LIMIT_S = 600.0  # only what hangs takes so long, also on a busy machine
# To compile is most of the time of these tests: a quarter of it is left with jaxlib 0.10. Newer
# ones have no other emitters to choose, and end where they are told to.
_EMITTERS = "--xla_cpu_use_fusion_emitters=false"
FAST = "--xla_backend_optimization_level=0"
if jaxlib.__version__.startswith("0.10."):
    FAST += f" {_EMITTERS}"


def printed(module, flags=FAST):
    """What a module of the tests prints, as JSON; its warnings are errors.

    It is run as a module of this checkout: run by its path it would find the dbjax that is
    installed.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", module],
        capture_output=True,
        text=True,
        check=False,
        timeout=3 * LIMIT_S,  # some compile for minutes
        cwd=pathlib.Path(__file__).parents[1],
        env=os.environ | {"XLA_FLAGS": flags},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
