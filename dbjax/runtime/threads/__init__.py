"""Threads: a runtime of this process, in real time."""

from dbjax.runtime.threads.runtime import ThreadsRuntime as ThreadsRuntime
