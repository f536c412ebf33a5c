"""Whose code a thread runs."""

from __future__ import annotations

import threading

from dbjax.runtime.callers import Caller
from dbjax.runtime.observed import Unrecorded


class _Driver:
    name, observer = "driver", True


DRIVER = Caller(_Driver(), "driver", Unrecorded())


class _Here(threading.local):
    caller = DRIVER


here = _Here()
