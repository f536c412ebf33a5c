"""The virtual cluster: a runtime whose time is modelled and whose numerics are real."""

from dbjax.runtime.virtual.runtime import VirtualRuntime as VirtualRuntime
