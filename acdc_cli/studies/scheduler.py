"""Works through a study's queue: claims runs, starts them and records how they end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from acdc_cli import files
from acdc_cli.errors import RESUME_ME
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.studies.launcher import Job, Launcher
from acdc_cli.studies.owner import Owner
from acdc_cli.studies.results import headline_of
from acdc_cli.studies.run_queue import TRIES, Row, RunQueue

BEAT_EVERY = 15.0
"""Seconds between two heartbeats."""
_PAUSE = 0.5
"""Seconds between two polls of the jobs."""
_SAID = 5
"""Last lines of a log to show after a failure."""
_ENDED_EARLY = (RESUME_ME, 130, -signal.SIGTERM, -signal.SIGINT)
"""Exit codes of a run that was asked to end, after saving or before there was anything to save."""
_ENVIRONMENT = {"TTY_COMPATIBLE": "0"}
"""Plain text in the logs, whatever this terminal supports."""


class Show(Protocol):
    """Shows a person the sweep's progress."""

    def say(self, text: str) -> None:
        """Reports an event."""

    def draw(self, rows: Sequence[Row], own: set[str]) -> None:
        """Draws the current state. own: keys of the runs started by this process."""


@dataclass
class _Started:
    row: Row
    job: Job
    log: Path
    logged: int
    """Size of the log in bytes before this attempt."""
    lost: bool = False
    """Another process has taken the run over."""


class Sweep:
    def __init__(
        self,
        queue: RunQueue,
        owner: Owner,
        launcher: Launcher,
        command: Callable[[Row], Sequence[str]],
        logs: Path,
        lengthen: Callable[[], Sequence[str]],
        show: Show,
    ) -> None:
        """command: the command line that trains a row. lengthen: adds the runs that follow from finished ones; returns
        messages."""
        self._queue, self._launcher, self._command = queue, launcher, command
        self._logs, self._lengthen, self._show = logs, lengthen, show
        self._owner = owner
        self._started: list[_Started] = []
        self._beaten = time.monotonic()
        self._stopping = False
        self._done = -1

    def work(self, stop: Callable[[], bool]) -> None:
        """Returns when no run of the study is waiting or running, here or elsewhere.

        If `stop` returns True, it returns once all runs that do not outlive this process have ended.
        """
        try:
            while True:
                self._collect()
                if stop():
                    self._stop()
                else:
                    self._grow()
                    self._fill()
                self._beat()
                rows = self._queue.rows()
                self._show.draw(rows, {each.row.key for each in self._started})
                left = any(row.state in ("waiting", "running") for row in rows)
                if not self._started and (self._stopping or not left):
                    return
                time.sleep(_PAUSE)
        finally:
            for each in self._started:
                each.job.stop(signal.SIGTERM)

    def _fill(self) -> None:
        under_way = self._launcher.under_way()
        while len(self._started) < self._launcher.slots:
            row = self._queue.claim(self._owner, under_way)
            if row is None:
                return
            log = self._logs / f"{row.key}.log"
            try:
                with files.explained(log):
                    logged = log.stat().st_size if log.exists() else 0
                    job = self._launcher.start(row.cell, self._command(row), _ENVIRONMENT, log)
            except BaseException:
                self._queue.release(row.key, self._owner)
                raise
            self._started.append(_Started(row, job, log, logged))
            begun = RunDir(row.directory).resolved.exists()
            self._show.say(f"{row.key}: {'resumes' if begun else 'starts'}")

    def _collect(self) -> None:
        ended = [(each, code) for each in self._started if (code := each.job.poll()) is not None]
        for each, code in ended:
            self._started.remove(each)
            if not each.lost:
                self._settle(each, code)

    def _settle(self, ended: _Started, code: int) -> None:
        row, run = ended.row, RunDir(ended.row.directory)
        if code == 0 and run.finished:
            self._queue.finish(row.key, self._owner)
            self._show.say(f"{row.key}: done{_accuracy(run)}")
        elif code == RESUME_ME or (self._stopping and code in _ENDED_EARLY):
            self._queue.release(row.key, self._owner)
            self._show.say(f"{row.key}: saved, to resume later")
        elif run.in_use:
            self._queue.release(row.key, self._owner)
            self._show.say(f"{row.key}: another process still trains it")
        else:
            error = f"{_exit_reason(code)}: {_last_words(ended.log, ended.logged)}"
            self._queue.fail(row.key, self._owner, error)
            again = "tried again later" if row.failures + 1 < TRIES else "given up"
            self._show.say(f"{row.key}: failed, {again}: {error.splitlines()[-1]}")

    def _beat(self) -> None:
        if time.monotonic() - self._beaten < BEAT_EVERY:
            return
        self._beaten = time.monotonic()
        own = self._queue.beat(self._owner)
        for each in self._started:
            if not each.lost and each.row.key not in own:
                each.lost = True
                each.job.stop(signal.SIGKILL)
                self._show.say(
                    f"{each.row.key}: this sweep sent no heartbeat for so long that another sweep took the run over"
                )

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        if self._launcher.outlives:
            self._release_runs()
            return
        for each in self._started:
            each.job.stop(signal.SIGTERM)
        self._show.say(f"stopping: {len(self._started)} runs are saving")

    def _release_runs(self) -> None:
        for each in self._started:
            self._queue.release(each.row.key, self._owner)
        self._show.say(f"{len(self._started)} runs continue without this sweep; the next sweep watches them again")
        self._started.clear()

    def _grow(self) -> None:
        done = sum(row.state == "done" for row in self._queue.rows())
        if done != self._done:
            self._done = done
            for said in self._lengthen():
                self._show.say(said)


def _accuracy(run: RunDir) -> str:
    if not (records := run.records()):
        return ""
    headline = headline_of(run)
    accuracy = records[-1][headline.key]
    return "" if accuracy is None else f", {headline.name} {headline.spelt(accuracy)} after the last epoch"


def _exit_reason(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _last_words(log: Path, start: int) -> str:
    """The error message at the end of the run's log, otherwise its last lines. start: byte offset of this attempt."""
    lines = [line for line in log.read_bytes()[start:].decode(errors="replace").splitlines() if line.strip()]
    start = next((i for i, line in enumerate(lines) if line.startswith("error: ")), max(0, len(lines) - _SAID))
    return "\n".join(lines[start:]) or "no output"
