"""What a sweep shows: on a terminal, a progress bar for every run; otherwise one line per event."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from acdc_cli import console
from acdc_cli.errors import RunError
from acdc_cli.quantities import Quantity
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.statistics import mean
from acdc_cli.studies.run_queue import Row


@dataclass(frozen=True)
class Progress:
    """Progress of a run."""

    epochs: int
    done: int = 0
    train_loss: float | None = None
    """Training loss of the last epoch, in nats."""
    accuracy: str = ""
    """The headline of the run's task after the last epoch, without its unit."""
    seconds: float = 0.0
    """Mean duration of an epoch."""
    since: float = 0.0
    """Seconds since the end of the last epoch."""

    @property
    def left(self) -> float | None:
        """Remaining seconds; None before the end of the first epoch."""
        return max(0.0, (self.epochs - self.done) * self.seconds - self.since) if self.done else None


def seconds_per_epoch(records: Sequence[Mapping[str, Any]]) -> float:
    """Mean duration of the epochs of a run that has records."""
    return mean(record["seconds"] for record in records)


class Screen:
    def __init__(
        self,
        name: str,
        epochs: Callable[[Row], int],
        headline: Callable[[Row], Quantity],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """epochs: the planned number of epochs of a row's run.  headline: of its task."""
        self._name, self._epochs, self._headline, self._clock = name, epochs, headline, clock
        self._began = clock()
        self._first_done: int | None = None
        self._read: dict[Path, tuple[float, list[dict[str, Any]]]] = {}
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        self._live = console.screen()
        if self._live is None:
            yield
            return
        with self._live:
            yield
        self._live = None

    def say(self, text: str) -> None:
        console.say(text)

    def draw(self, rows: Sequence[Row], own: set[str]) -> None:
        if self._live is not None:
            self._live.update(self.render(rows, own), refresh=True)

    def render(self, rows: Sequence[Row], own: set[str]) -> RenderableType:
        """The totals and every running run, this sweep's first."""
        running = sorted(
            (row for row in rows if row.state == "running" and not row.queued), key=lambda row: row.key not in own
        )
        progress = {row.key: self._progress(row) for row in running}
        totals, counts = self._totals(rows, progress, len(own))
        return (
            Group(totals, counts, Text(), _bars(running, progress, own, self._ranked_by(running)))
            if running
            else Group(totals, counts)
        )

    def _totals(self, rows: Sequence[Row], progress: Mapping[str, Progress], own: int) -> tuple[Table, Text]:
        states = Counter(row.state for row in rows)
        total = sum(self._epochs(row) for row in rows if row.state != "failed")
        done = sum(self._epochs(row) for row in rows if row.state == "done")
        done += sum(each.done for each in progress.values())
        left = self._left(done, total)
        first = Table.grid(padding=(0, 1), expand=True)
        first.add_column(no_wrap=True)
        first.add_column(ratio=1)
        first.add_column(justify="right", no_wrap=True)
        times = _span(self._clock() - self._began) + ("" if left is None else f", about {_span(left)} left")
        first.add_row(Text(self._name, style="bold"), ProgressBar(total=max(1, total), completed=done), times)
        elsewhere = states["running"] - own
        queued = sum(row.queued for row in rows)
        counts = [
            f"{done}/{total} epochs",
            f"{states['done']}/{len(rows)} runs",
            *([f"{queued} queued"] if queued else []),
            f"{states['running'] - queued} running" + (f" ({elsewhere} elsewhere)" if elsewhere else ""),
            *([f"{states['failed']} failed"] if states["failed"] else []),
        ]
        return first, Text(" · ".join(counts), style="dim")

    def _ranked_by(self, rows: Sequence[Row]) -> str:
        """What the runs' tasks rank models by."""
        return " or ".join(dict.fromkeys(self._headline(row).common.name for row in rows))

    def _left(self, done: int, total: int) -> float | None:
        """Remaining seconds at the speed since this sweep began; None before its first epoch."""
        if self._first_done is None:
            self._first_done = done
        if done <= self._first_done:
            return None
        return (self._clock() - self._began) / (done - self._first_done) * (total - done)

    def _progress(self, row: Row) -> Progress:
        run, epochs = RunDir(row.directory), self._epochs(row)
        if not run.metrics.exists():
            return Progress(epochs)
        changed = run.metrics.stat().st_mtime
        if self._read.get(run.metrics, (0.0, []))[0] != changed:
            try:
                self._read[run.metrics] = (changed, run.records())
            except RunError:
                # damaged files are reported by the code that needs them; here they are only displayed
                self._read[run.metrics] = (changed, [])
        records = self._read[run.metrics][1]
        if not records:
            return Progress(epochs)
        headline = self._headline(row)
        return Progress(
            epochs=epochs,
            done=len(records),
            train_loss=records[-1]["train_loss"],
            accuracy="" if (share := records[-1].get(headline.key)) is None else headline.shown(share),
            seconds=seconds_per_epoch(records),
            since=self._clock() - changed,
        )


def _bars(running: Sequence[Row], progress: Mapping[str, Progress], own: set[str], ranked_by: str) -> Table:
    table = Table(box=None, pad_edge=False, expand=True, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("run", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("", width=10)
    for title in ("epochs", "loss", ranked_by, "left"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in running:
        at = progress[row.key]
        table.add_row(
            Text(row.key),
            ProgressBar(total=at.epochs, completed=at.done),
            f"{at.done}/{at.epochs}",
            "" if at.train_loss is None else f"{at.train_loss:.3f}",
            at.accuracy,
            "" if at.left is None else _span(at.left),
            style=None if row.key in own else "dim",
        )
    return table


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
