"""Processes that read images for another."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from acdc_cli.errors import DataError

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

_AHEAD = 3
"""Tasks in flight for each worker: they bound the memory, whatever the size of the set."""


def in_order(
    function: Callable[[_Task], _Result], tasks: Iterable[_Task], workers: int, what: str
) -> Iterator[_Result]:
    """The function's result for every task, in their order, computed by worker processes (0: by this one).

    what: what they read, for the error. Raises DataError if one of them is killed.
    """
    if workers == 0:
        yield from map(function, tasks)
        return
    # spawn: fork would copy the threads' locks of whatever is imported here
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=begin)
    pending: deque[Future[_Result]] = deque()
    try:
        for task in tasks:
            pending.append(executor.submit(function, task))
            if len(pending) > _AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as cause:
        raise DataError(
            f"a worker was killed, perhaps because memory ran out, that read {what}. Try again with fewer --workers."
        ) from cause
    finally:
        executor.shutdown(cancel_futures=True)


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
