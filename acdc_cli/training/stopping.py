"""Signals that ask a run to end: it saves within the step and exits with a code that asks for a restart."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""The signal of schedulers, Ctrl-C, and the one Slurm sends before the time limit (`--signal=USR1@120`)."""


class StopSignals:
    """Inside this context these signals are recorded and do not end the process; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        """The first signal received."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Python allows handlers only in the main thread; in other threads the signals belong to the program
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
