"""The order in which a service served in another run, imposed on this one."""

from __future__ import annotations

from typing import Any, final

from dbjax.errors import ReplayError
from dbjax.runtime.event_log import Script, version_of


@final
class ReplayOrder:
    """Holds calls back until it is their turn.

    Attributes:
      served: how many have been.
    """

    def __init__(self, script: Script, service: str) -> None:
        self._calls, self._service = script.calls(service), service
        self._early: dict[tuple[str, int], Any] = {}
        self._next = 0
        self.served = 0

    def due(self, caller: str, number: int, call: Any) -> list[Any]:
        """A call has arrived: those whose turn it is now, in order."""
        self._early[caller, number] = call
        found = []
        while self._next < len(self._calls) and self._calls[self._next][:2] in self._early:
            found.append(self._early.pop(self._calls[self._next][:2]))
            self._next += 1
        return found

    def check(self, reply: Any) -> None:
        """The next call in order was served, with this reply.

        Raises:
          ReplayError: its version is not that of the log.
        """
        caller, number, version = self._calls[self.served]
        self.served += 1
        if version != version_of(reply):
            raise ReplayError(
                f"{self._service}, call {self.served} of {len(self._calls)} ({caller}'s number "
                f"{number}): version {version_of(reply)}, the log says {version}: this is not the "
                "program, the data or the machine that wrote the log, or the log is damaged"
            )
