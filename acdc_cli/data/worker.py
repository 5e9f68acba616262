"""What every process does first that reads images for another."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def begin(_: int = 0) -> None:
    """The signals that end a run are for the process that started this one, and whose end, however it comes, ends this.

    A run that is asked to end still needs its workers for the step under way.
    """
    for each in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(each, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
