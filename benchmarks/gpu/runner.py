"""Runs the parts one after the other, each in a process with a limit, and keeps one file of results up to date."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import Part, limit_of
from benchmarks.gpu.processes import on_stop_signals

_ENDING = 5.0
"""Seconds between asking a part to end and killing it, and those kept back for the table."""
_PERIOD = 0.5


@dataclass
class Runner:
    folder: Path
    """For each part's file and log."""
    words: Sequence[str]
    """Further arguments of `benchmarks.gpu.trial`: rounds and size."""
    changed: Callable[[dict[str, Any]], None]
    """Called with the results of all parts whenever there are new ones."""
    results: dict[str, Any] = field(default_factory=dict)
    stopped: bool = False

    def run(self, parts: Sequence[Part], seconds: float) -> None:
        """SIGTERM and Ctrl-C end the part that runs and skip the others; what they have measured stays."""
        end = time.monotonic() + seconds - _ENDING
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in parts:
            self._tell(part, {"state": "waiting"})
        with on_stop_signals(self._stop):
            for position, part in enumerate(parts):
                limit = limit_of(part, parts[position + 1 :], end - time.monotonic())
                if self.stopped:
                    self._tell(part, {"state": "not run: stopped by a signal"})
                elif limit is None:
                    self._tell(part, {"state": "not run: no time left"})
                else:
                    self._measure(part, limit)

    def _stop(self) -> None:
        self.stopped = True

    def _measure(self, part: Part, limit: float) -> None:
        self._file(part).unlink(missing_ok=True)
        began = time.monotonic()
        facts = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "limit_seconds": round(limit, 1)}
        # the part itself plans for a little less, so as to end by itself
        deadline = began + limit - min(_ENDING, limit / 10)
        command = [sys.executable, "-m", "benchmarks.gpu.trial", part.module, str(self._file(part)), str(deadline)]
        with self._log(part).open("w") as log:
            # a session of its own, so that a signal reaches whatever it starts
            process = subprocess.Popen(
                [*command, *self.words], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            while process.poll() is None and time.monotonic() < began + limit and not self.stopped:
                time.sleep(_PERIOD)
                self._tell(part, facts | {"state": "running"} | self._read(part))
            late = process.poll() is None
        finally:
            _end(process)
        document = self._read(part)
        if late:
            state = "stopped by a signal" if self.stopped else f"stopped at its limit of {limit:.0f} s"
        else:
            state = self._outcome(part, process.returncode, document)
        self._tell(part, facts | {"seconds": round(time.monotonic() - began, 1), "state": state} | document)

    def _outcome(self, part: Part, code: int, document: dict[str, Any]) -> str:
        if "skipped" in document:
            return f"skipped: {document['skipped']}"
        if code == 0:
            return "done"
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        said = self._log(part).read_text(errors="replace").strip().splitlines()
        return f"failed: {document.get('error') or ' '.join([how, *said[-1:]])}"

    def _tell(self, part: Part, result: dict[str, Any]) -> None:
        if self.results.get(part.name) != result:
            self.results[part.name] = result
            self.changed(self.results)

    def _file(self, part: Part) -> Path:
        return self.folder / f"{part.name}.json"

    def _log(self, part: Part) -> Path:
        return self.folder / f"{part.name}.log"

    def _read(self, part: Part) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads(self._file(part).read_text())
        # before its first word
        except FileNotFoundError:
            return {}
        return document


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_ENDING / 2)
    # what it has left behind
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
