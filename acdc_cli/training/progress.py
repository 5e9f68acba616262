"""What a person sees of a training run: a bar while an epoch runs, a line when it is done."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from acdc_cli import console

_HEADER = "epoch  phase   lr        train   val     top-1   entropy  sparsity  img/s    time"


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
    console.say(_HEADER)


def print_epoch(record: dict[str, Any]) -> None:
    console.say(
        f"{record['epoch']:<6} {record['phase']:<7} {record['lr']:<9.3g} {record['train_loss']:<7.3f} "
        f"{record['val_loss']:<7.3f} {record['top1']:<7.2%} {record['entropy']:<8.3f} {record['sparsity']:<9.2%} "
        f"{record['images_per_second']:<8.0f} {record['seconds']:.0f} s"
    )
