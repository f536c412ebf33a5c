"""The threads runtime, which runs in real time within this operating-system process."""

from dbjax.runtime.threads.runtime import ThreadsRuntime as ThreadsRuntime
