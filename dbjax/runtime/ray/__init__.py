"""Ray: every node a process of its own, on one machine or on many.

Ray itself is imported when a runtime is made.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from dbjax.runtime.ray.options import RayOptions as RayOptions

if TYPE_CHECKING:
    from dbjax.runtime.ray.runtime import RayRuntime


def ray_runtime(options: RayOptions | None = None, **others: Any) -> RayRuntime:
    """Makes a `RayRuntime`; the arguments are its own.

    Raises:
      ValueError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError("runtime=ray needs Ray: pip install 'dbjax[ray]'")
    from dbjax.runtime.ray.runtime import RayRuntime

    return RayRuntime(options, **others)
