"""Which node's code a thread runs."""

from __future__ import annotations

import threading

DRIVER = "driver"


class _Here(threading.local):
    name = DRIVER


here = _Here()
