"""Limits how long a process waits for the others that train with it, and names those that are missing."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Self

from torch.distributed.distributed_c10d import PrefixStore, Store

from acdc_cli import console

FIRST_WORD, EACH_WORD = 30.0, 60.0
"""Seconds of waiting before the missing processes are named, and between that and the next time."""
START = 1800.0
"""The deadline until a process has taken its first step: compiling and opening data may take minutes on one of them."""
GRACE = 10.0
"""Seconds that a process which was asked to stop waits for the others, or longer if waits were longer before."""
BEAT = 1.0
SILENT = 10.0
"""Seconds without a beat after which a process counts as missing."""
LOST, INTERRUPTED = 1, 130
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@dataclass
class _Beat:
    """What a process last said of itself."""

    waits: int = 0
    """How often it has begun to wait for the others: equally often in all processes."""
    epoch: int | None = None
    step: int = 0
    """The last step taken."""
    process: str = ""
    """Host and number of the process."""
    number: int = 0
    heard: float = 0.0
    """When its number last changed, on the clock of the process that hears it."""


class Watchdog:
    """Two threads: one exchanges beats with the other processes, one judges how long this process has been waiting.

    The thread that trains may be held in a collective operation, where Python runs no signal handler. The judge then
    ends the process: after `timeout` seconds with code 1, which makes a launcher restart all processes, and soon after
    a signal or the launcher's death with code 130.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.timeout = 0.0
        """Seconds for which the process waits once it has taken a step."""
        self._rank, self._size = rank, size
        self._own = _Beat(process=f"process {os.getpid()} on {socket.gethostname()}")
        self._others: dict[int, _Beat] = {}
        self._entered: list[float] = []
        """Since when the process has been waiting; empty while it is not."""
        self._longest = 0.0
        self._beaten = time.monotonic()
        """When the last beats were exchanged."""
        self._asked: float | None = None
        """When the process was asked to stop, by `_asked_by`."""
        self._asked_by = ""
        self._interrupts = 0
        self._launcher = os.getppid()
        self._said = 0.0
        """How long the process had been waiting when it last said so."""
        self._over = threading.Event()
        self._signals, self._wake = os.pipe()
        self._before: int | None = None
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        os.set_blocking(self._wake, False)
        if threading.current_thread() is threading.main_thread():
            self._before = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._begin(self._judge)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        os.write(self._wake, bytes(1))
        if self._before is not None:
            signal.set_wakeup_fd(self._before)
        for thread in self._threads:
            # one that waits for a dead store is left behind
            thread.join(timeout=5)
        for end in (self._signals, self._wake):
            os.close(end)

    def announce(self, store: Store) -> None:
        """Announces this process to the others; all must have done so before any of them calls `start_exchange`."""
        # a connection of its own: the other one is blocked while its thread waits
        self._store = PrefixStore("watchdog", store.clone())
        self._publish()

    def start_exchange(self) -> None:
        self._begin(self._exchange_beats)

    def reached(self, epoch: int, step: int) -> None:
        """The process has taken this step."""
        self._own.epoch, self._own.step = epoch, step

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around whatever waits for the other processes; all must enter it equally often and in the same order."""
        began = time.monotonic()
        self._own.waits += 1
        self._entered.append(began)
        try:
            yield
        finally:
            self._entered.pop()
            self._longest = max(self._longest, time.monotonic() - began)

    def _begin(self, work: Any) -> None:
        self._threads.append(threading.Thread(target=work, daemon=True, name=f"watchdog: {work.__name__}"))
        self._threads[-1].start()

    def _publish(self) -> None:
        own = self._own
        own.number += 1
        self._store.set(str(self._rank), json.dumps([own.number, own.waits, own.epoch, own.step, own.process]))

    def _exchange_beats(self) -> None:
        others = [rank for rank in range(self._size) if rank != self._rank]
        while not self._over.wait(BEAT):
            try:
                self._publish()
                told = self._store.multi_get([str(rank) for rank in others])
            except RuntimeError:
                # the store ended with the process that keeps it
                return
            now = self._beaten = time.monotonic()
            for rank, (number, *rest) in zip(others, map(json.loads, told), strict=True):
                waits, epoch, step, process = rest
                before = self._others.get(rank)
                if before is None or before.number != number:
                    self._others[rank] = _Beat(waits, epoch, step, process, number, now)

    def _judge(self) -> None:
        while not self._over.is_set():
            ready, _, _ = select.select([self._signals], [], [], min(1.0, FIRST_WORD / 2))
            if ready:
                self._note(os.read(self._signals, 64))
            elif os.getppid() != self._launcher:
                self._ask("its launcher has died")
            # the list may change at any time
            if entered := self._entered[:1]:
                self._judge_wait(time.monotonic(), entered[0])
            else:
                self._said = 0.0

    def _note(self, numbers: bytes) -> None:
        asked = [number for number in numbers if number in _SIGNALS]
        self._interrupts += asked.count(signal.SIGINT)
        if asked:
            self._ask(f"{signal.Signals(asked[0]).name} received")

    def _ask(self, by: str) -> None:
        if self._asked is None:
            self._asked, self._asked_by = time.monotonic(), by

    def _judge_wait(self, now: float, entered: float) -> None:
        waited = now - entered
        limit = self.timeout if self._own.epoch is not None else max(START, self.timeout)
        if self._asked is not None:
            patience = 1.0 if self._interrupts > 1 else max(GRACE, 2 * self._longest)
            if now - max(entered, self._asked) > patience:
                self._end(
                    INTERRUPTED, f"{self._asked_by} while {self._names_missing(now)}: ended without another checkpoint"
                )
        if waited > limit:
            self._end(
                LOST,
                f"{self._names_missing(now)}, for {waited / 60:.3g} minutes: this process ends, and all can restart "
                "from the last checkpoint (distributed.timeout_minutes is the limit)",
            )
        if waited > (self._said + EACH_WORD if self._said else FIRST_WORD) and (missing := self._missing(now)):
            self._said = waited
            if self._speaks(missing):
                self._speak(
                    console.warn,
                    f"{self._names_missing(now)}, for {waited:.0f} s; the limit is {limit / 60:.3g} minutes",
                )

    def _missing(self, now: float) -> list[int]:
        """Processes that have not come to where this one waits, or are silent."""
        return [
            rank
            for rank, beat in sorted(self._others.items())
            if beat.waits < self._own.waits or (self._hears(now) and now - beat.heard > SILENT)
        ]

    def _hears(self, now: float) -> bool:
        """Whether the process that keeps the store of all others answers."""
        return now - self._beaten < SILENT

    def _names_missing(self, now: float) -> str:
        if not (missing := self._missing(now)):
            if not self._hears(now):
                return "waiting for the process that connects all others"
            return f"all {self._size} ranks are waiting for each other"
        shown = "; ".join(f"{rank} of {self._size} ({self._state(rank, now)})" for rank in missing[:4])
        return f"waiting for rank {shown}" + (f" and {len(missing) - 4} others" if len(missing) > 4 else "")

    def _state(self, rank: int, now: float) -> str:
        beat = self._others[rank]
        place = "before its first step" if beat.epoch is None else f"after step {beat.step} of epoch {beat.epoch}"
        silent = now - beat.heard
        return f"{beat.process}, {place}" + (f", silent for {silent:.0f} s" if silent > SILENT else "")

    def _speaks(self, missing: Sequence[int]) -> bool:
        """One process speaks for all that wait."""
        return self._rank == min(set(range(self._size)) - set(missing))

    def _speak(self, say: Any, text: str) -> None:
        was_muted = console.muted()
        console.mute(False)
        say(text)
        console.mute(was_muted)

    def _end(self, code: int, text: str) -> NoReturn:
        if self._speaks(self._missing(time.monotonic())):
            self._speak(console.error, text)
        # the thread that trains cannot be woken
        os._exit(code)
