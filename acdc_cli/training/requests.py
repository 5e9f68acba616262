"""Requests to save a run or to stop it, on which all its processes act after the same step."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum

from acdc_cli.training.distributed import Ranks


class Request(IntEnum):
    """What a rank asks for after a step; the strongest request of any rank wins."""

    CONTINUE = 0
    SAVE = 1
    STOP = 2
    """Save, then stop."""


class Requests:
    """With several ranks a request takes effect one step late: no rank waits within a step for the others' answers."""

    def __init__(self, ranks: Ranks, save_minutes: float | None, stop_asked: Callable[[], bool]) -> None:
        """save_minutes: between two saves; None to save on no schedule."""
        self._ranks = ranks
        self._save_minutes = save_minutes
        self.stop_asked = stop_asked
        self._saved_at = time.monotonic()
        self._strongest: Callable[[], float] = lambda: Request.CONTINUE
        """Waits for the exchange that `send` began."""

    def saved(self) -> None:
        """The run has just been saved."""
        self._saved_at = time.monotonic()

    def strongest(self) -> Request:
        """The request that all ranks are to carry out now; `send` must follow before the next call."""
        return self._own() if self._ranks.size == 1 else Request(int(self._strongest()))

    def send(self) -> None:
        """Begin to exchange this step's requests, without waiting for the other ranks."""
        if self._ranks.size > 1:
            self._strongest = self._ranks.largest_later(self._own())

    def settle(self) -> None:
        """Wait for the last exchange, whose outcome no longer matters."""
        self._strongest()

    def _own(self) -> Request:
        if self.stop_asked():
            return Request.STOP
        minutes = self._save_minutes
        due = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        return Request.SAVE if due else Request.CONTINUE
