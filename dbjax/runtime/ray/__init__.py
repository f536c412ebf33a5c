"""The Ray runtime, where every node is an operating-system process, on one machine or many.

This package imports Ray only when a runtime is made. In its modules, "process" means an
operating-system process.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from dbjax.runtime.ray.options import RayOptions as RayOptions

if TYPE_CHECKING:
    from dbjax.runtime.ray.runtime import RayRuntime


def ray_runtime(options: RayOptions | None = None, **others: Any) -> RayRuntime:
    """Makes a `RayRuntime`.

    Args:
      options: where processes are placed, and what they ask for; None: `RayOptions()`.
      **others: the other arguments of `RayRuntime`.

    Raises:
      ValueError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError("runtime=ray needs Ray: pip install 'dbjax[ray]'")
    from dbjax.runtime.ray.runtime import RayRuntime

    return RayRuntime(options, **others)
