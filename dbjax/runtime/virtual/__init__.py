"""The virtual cluster: modelled time and real numerics, of a run or of its replay."""

from dbjax.runtime.virtual.replay import ReplayRuntime as ReplayRuntime
from dbjax.runtime.virtual.runtime import VirtualRuntime as VirtualRuntime
