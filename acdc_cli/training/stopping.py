"""Signals that ask a run to end: it is saved within the step, and its exit code says that it wants to go on."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""A scheduler's, Ctrl-C, and what Slurm sends before the time is up (`--signal=USR1@120`)."""


class StopSignals:
    """While it is entered, these signals are noted and no longer end the process; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        """The first that came."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Python lets only the main thread have handlers; elsewhere the signals are whoever's that owns it
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._note) for each in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def __bool__(self) -> bool:
        return self.asked is not None

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = self.asked or signal.Signals(number)
