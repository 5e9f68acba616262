"""What a person sees of a training run: a bar while an epoch runs, a line when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from acdc_cli import console


class EpochProgress:
    """A bar over all steps of the run, so that its remaining time is the run's."""

    def __init__(self, epoch: int, epochs: int, steps: int, phase: str) -> None:
        self._bar = console.progress("", "loss {task.fields[loss]} · {task.fields[speed]} img/s")
        self._task = self._bar.add_task(
            f"epoch {epoch} {phase}", total=epochs * steps, completed=epoch * steps, loss="…", speed="…"
        )
        self._images = 0
        self._began = time.perf_counter()

    def advance(self, images: int) -> None:
        self._images += images
        self._bar.advance(self._task)

    def show(self, loss: float) -> None:
        speed = self._images / (time.perf_counter() - self._began)
        self._bar.update(self._task, loss=f"{loss:.3f}", speed=f"{speed:.0f}")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def print_header() -> None:
    console.say("train, val and entr. in nats; top-1, top-5 and zero weights (of the pruned, of all) in %")
    console.say("".join(f"{title:>{width}}" for title, width, _ in _COLUMNS))


def print_epoch(record: dict[str, Any]) -> None:
    console.say("".join(f"{cell(record):>{width}}" for _, width, cell in _COLUMNS))


def print_phase_end(record: dict[str, Any]) -> None:
    """How unevenly the sparsity lies over the layers; metrics.jsonl has each."""
    pruned = {name: share for name, share in record["layers"].items() if share > 0}
    if pruned:
        few, most = (pick(pruned, key=pruned.__getitem__) for pick in (min, max))
        console.say(f"     zeros by layer: from {pruned[few]:.1%} of {few} to {pruned[most]:.1%} of {most}")


def _loss(value: float | None) -> str:
    """Five characters, whatever happens."""
    if value is None:
        return "nan"
    return f"{value:.3f}" if value < 10 else f"{value:.2f}" if value < 100 else f"{value:.0e}".replace("e+0", "e")


_COLUMNS: tuple[tuple[str, int, Callable[[dict[str, Any]], str]], ...] = (
    ("ep", 4, lambda record: str(record["epoch"])),
    ("phase", 7, lambda record: record["phase"]),
    ("lr", 8, lambda record: f"{record['lr']:.1e}"),
    ("px", 4, lambda record: str(record["resolution"])),
    ("train", 6, lambda record: _loss(record["train_loss"])),
    ("val", 6, lambda record: _loss(record["val_loss"])),
    ("top-1", 7, lambda record: f"{100 * record['top1']:.2f}"),
    ("top-5", 7, lambda record: f"{100 * record['top5']:.2f}"),
    ("entr.", 6, lambda record: _loss(record["entropy"])),
    ("zeros", 6, lambda record: f"{100 * record['sparsity']:.2f}"),
    ("all", 6, lambda record: f"{100 * record['sparsity_all']:.2f}"),
    ("img/s", 6, lambda record: f"{record['images_per_second']:.0f}"),
    ("time", 6, lambda record: f"{record['seconds']:.0f} s"),
)
"""Title, width and cell: 79 characters in all."""
