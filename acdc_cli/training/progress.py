"""The terminal output of a training run: a bar while it runs, a line after each epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.progress import Progress, TaskID

from acdc_cli import console
from acdc_cli.quantities import Measures
from acdc_cli.recipe.blocks.data import DataBlock
from acdc_cli.runs.collapse import REMEDY, sign_of_collapse
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.runs.tracker import Tracker
from acdc_cli.training.compiling import COMPILING, LOG


class RunProgress:
    """A bar over all steps of the run; speed and remaining time include validation."""

    def __init__(self, epochs: int, steps: int, done: int, samples: type[DataBlock]) -> None:
        """done: steps of the run completed before this process started."""
        self._epochs, self._steps, self._done = epochs, steps, done
        self._rate = samples.short_words[1]
        self._began = time.perf_counter()
        self._shown: dict[str, Any] = {"loss": "…", "speed": "…", "left": "…", "compiling": LOG}
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._images = 0
        self._epoch_began = 0.0

    @contextmanager
    def epoch(self, epoch: int, phase: str, done: int = 0) -> Iterator[None]:
        """done: steps of this epoch completed."""
        fields = f"loss {{task.fields[loss]}} · {{task.fields[speed]}} {self._rate} · {{task.fields[left]}} left"
        with console.progress(f"epoch {epoch}", fields + COMPILING, remaining=False) as bar:
            self._bar, self._images, self._epoch_began = bar, 0, time.perf_counter()
            self._task = bar.add_task(
                f"epoch {epoch} {phase}, step",
                total=self._epochs * self._steps,
                completed=epoch * self._steps + done,
                **self._shown,
            )
            yield

    def advance(self, images: int) -> None:
        assert self._bar is not None
        assert self._task is not None
        self._images += images
        self._bar.advance(self._task)

    def show(self, loss: float, step: int) -> None:
        """step: steps of the run completed."""
        assert self._bar is not None
        assert self._task is not None
        now = time.perf_counter()
        left = (now - self._began) / (step - self._done) * (self._epochs * self._steps - step)
        self._shown |= {
            "loss": f"{loss:.3f}",
            "speed": f"{self._images / (now - self._epoch_began):.0f}",
            "left": str(timedelta(seconds=round(left))),
        }
        self._bar.update(self._task, **self._shown)


def print_header(measures: Measures, samples: type[DataBlock]) -> None:
    by_unit = {unit: [each.short for each in measures.all if each.unit == unit] for unit in ("nats", "bits", "%")}
    bits = f"{', '.join(by_unit['bits'])} in bits; " if by_unit["bits"] else ""
    nats, shares = ", ".join(["train", "val", *by_unit["nats"]]), ", ".join([*by_unit["%"], "zeros"])
    console.say(f"{nats} in nats; {bits}{shares} (of pruned layers, of all) in %")
    console.say("".join(f"{title:>{width}}" for title, width, _ in _columns(measures, samples)))


def print_epoch(record: dict[str, Any], measures: Measures, samples: type[DataBlock]) -> None:
    console.say("".join(f"{cell(record):>{width}}" for _, width, cell in _columns(measures, samples)))


def warn_of_collapse(run: RunDir, trackers: Sequence[Tracker]) -> None:
    """Warns once, after the first epoch whose record shows it. Processes without trackers do not warn."""
    records = run.records() if trackers else []
    sign = sign_of_collapse(records)
    if sign and not sign_of_collapse(records[:-1]):
        console.warn(f"{sign}: the run may be collapsing; {REMEDY}")
        for tracker in trackers:
            tracker.alert(f"{sign}; {REMEDY}")


def tell_compiled() -> dict[str, float]:
    """Prints what torch compiled during the last epoch, if anything; returns the entry for its record."""
    compiled = LOG.take()
    if compiled.graphs:
        console.say(str(compiled))
    return {"compile_seconds": round(compiled.seconds, 3)} if compiled.seconds else {}


def print_phase_end(record: dict[str, Any]) -> None:
    """Prints how unevenly the sparsity is distributed over the layers; metrics.jsonl has each."""
    pruned = {name: share for name, share in record["layers"].items() if share > 0}
    if pruned:
        densest, sparsest = (pick(pruned, key=pruned.__getitem__) for pick in (min, max))
        console.say(
            f"     zeros by layer: from {pruned[densest]:.1%} of {densest} to {pruned[sparsest]:.1%} of {sparsest}"
        )


Column = tuple[str, int, Callable[[dict[str, Any]], str]]
"""Title, width and cell."""


def _columns(measures: Measures, samples: type[DataBlock]) -> tuple[Column, ...]:
    """79 characters in all for a task of three measures."""
    size, rate = samples.short_words
    return (
        ("ep", 4, lambda record: str(record["epoch"])),
        ("phase", 7, lambda record: record["phase"]),
        ("lr", 8, lambda record: f"{record['lr']:.1e}"),
        (size, 4, lambda record: str(record[samples.size_key])),
        ("train", 6, lambda record: _loss(record["train_loss"])),
        ("val", 6, _of_validation("val_loss", measures)),
        *_measured(measures),
        ("zeros", 6, lambda record: f"{100 * record['sparsity']:.2f}"),
        ("all", 6, lambda record: f"{100 * record['sparsity_all']:.2f}"),
        (rate, 6, lambda record: f"{record[samples.speed_key()]:.0f}"),
        ("time", 6, lambda record: f"{record['seconds']:.0f} s"),
    )


def _measured(measures: Measures) -> Iterator[Column]:
    for each in measures.all:
        if each.unit == "%":
            yield each.short, 7, _percent(each.key)
        else:
            yield each.short, max(6, len(each.short) + 1), _of_validation(each.key, measures)


def _percent(key: str) -> Callable[[dict[str, Any]], str]:
    """A dash if the epoch had no validation."""
    return lambda record: "-" if record[key] is None else f"{100 * record[key]:.2f}"


def _of_validation(key: str, measures: Measures) -> Callable[[dict[str, Any]], str]:
    return lambda record: "-" if record[measures.headline.key] is None else _loss(record[key])


def _loss(value: float | None) -> str:
    """At most five characters."""
    if value is None:
        return "nan"
    for digits in (3, 2, 1):
        if len(text := f"{value:.{digits}f}") <= 5:
            return text
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
