"""A training run without its files: the real parts and the real Trainer, fed by whatever loader is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from acdc_cli.data.batches import Batch, Loader
from acdc_cli.jobs import setup, training_run
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.schedule.time import Moment
from acdc_cli.training.distributed import ALONE, Ranks
from acdc_cli.training.parts import Parts
from acdc_cli.training.trainer import Trainer

CLASSES = 1000


class Resident:
    """A loader whose one batch lies on the device already, so that nothing but the training loop is measured."""

    kind: Literal["ffcv", "torch"] = "torch"

    def __init__(self, batch_size: int, side: int, steps: int, device: torch.device, classes: int = CLASSES) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (batch_size, side, side, 3), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, classes, (batch_size,), generator=generator)
        self.batch = Batch(images.to(device).permute(0, 3, 1, 2), labels.to(device), torch.arange(batch_size))
        self.steps = steps
        """Steps of an epoch; may be changed between two epochs."""

    @property
    def samples(self) -> int:
        return self.steps * len(self.batch.targets)

    @contextmanager
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Iterator[Batch]]:
        yield (self.batch for _ in range(start_step, self.steps))

    def prepare(self, epoch: int) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Assembly:
    recipe: Recipe
    parts: Parts
    trainer: Trainer

    def train_epoch(self, epoch: int) -> None:
        """All that `acdc train` does in an epoch but evaluating and writing files."""
        self.trainer._epoch, self.trainer._step = epoch, 0
        self.trainer._running.begin()
        self.trainer._train()

    def steps(self, epoch: int, count: int, first: int = 1) -> None:
        """`count` steps of an epoch on the loader's first batch, as the trainer takes them.

        first: the step of the epoch to begin with; not its very first, at which many methods update their masks.
        """
        with self.parts.train.epoch(epoch) as batches:
            batch = next(batches)
            for index in range(first, first + count):
                self.trainer._take_step(batch, moment(self, epoch, index), self.recipe.optim.lr)


def assemble(
    recipe: Recipe,
    loader: Loader,
    classes: int = CLASSES,
    ranks: Ranks = ALONE,
    folder: Path = Path("unused"),
) -> Assembly:
    """ranks: the processes that train together; the loader gives this one's part of a batch.

    folder: of the run, if files of it are to be written.
    """
    ready = setup.build(recipe, classes, ranks)
    parts = training_run.assemble(recipe, ready, loader, loader)
    ready.model.train()
    return Assembly(recipe, parts, Trainer(parts, RunDir(folder)))


def moment(assembly: Assembly, epoch: int, index: int = 0) -> Moment:
    """A step of an epoch."""
    steps = assembly.parts.train.steps
    return Moment(epoch, epoch * steps + index, assembly.recipe.epochs, steps)
