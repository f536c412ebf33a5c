import sys

import pytest

from dbjax.runtime.ray import ray_runtime
from dbjax.runtime.trace import Trace


@pytest.fixture(scope="module")
def by_value(request):
    """Ray, whose processes cannot import the tests."""
    ray = pytest.importorskip("ray", reason="dbjax[ray] is not installed")
    tests = [module for name, module in sys.modules.items() if name.startswith("tests.")]
    for module in (request.module, *tests):
        ray.cloudpickle.register_pickle_by_value(module)
    return ray


@pytest.fixture(scope="module")
def cluster(by_value):
    """A cluster of Ray for the tests of a module."""
    ray = by_value
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False,
             logging_level="ERROR", _system_config={"worker_niceness": 0})  # fmt: skip
    yield ray
    ray.shutdown()


@pytest.fixture
def runtime(cluster):
    made = ray_runtime(trace=Trace(max_spans=1000))
    yield made
    made.close()
