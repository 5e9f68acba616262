"""The first steps of every process that reads images for another."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def begin(_: int = 0) -> None:
    """Ignore the signals that end a run, and end when the process that started this one ends.

    A run that is stopping still needs its workers for the current step.
    """
    for each in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(each, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
