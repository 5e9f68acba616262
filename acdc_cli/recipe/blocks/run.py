"""The blocks of a recipe that keep, follow and average a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from acdc_cli.recipe.blocks.base import Block, Decay, Epochs, Misfit, RunSize, epochs_of


class EMABlock(Block):
    decay: Decay
    """Decay of the average at each step, such as 0.9999; it spans about 1 / (1 - decay) steps."""
    begin: Epochs = 0
    """Epoch in which the average begins, from the weights after its first step; 85% averages the last phase only."""

    def check(self, run: RunSize) -> Iterator[Misfit]:
        if (begin := epochs_of(self.begin, run.epochs)) >= run.epochs:
            epochs = f"the run has {run.epochs} epochs"
            yield Misfit("begin", f"the average would begin at epoch {begin}, but {epochs}; make it earlier")


class TrackBlock(Block):
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto`: online when logged in, else offline. metrics.jsonl is written in every case."""
    project: str = "acdc"
    """W&B project."""
    entity: str | None = None
    """W&B user or team. Default: yours."""
    group: str | None = None
    """W&B group."""
    tags: list[str] = []
    """W&B tags."""
    tensorboard: bool = False
    """Also write TensorBoard's event files, into the run's folder `tensorboard` (extra `tensorboard`)."""
    log_every: PositiveInt = 50
    """Steps between two checks of the loss, for the progress bar and `optim.nan_patience`."""


class CheckpointBlock(Block):
    every_epochs: PositiveInt = 1
    """Epochs between two resumable checkpoints; the end of every phase writes one, too."""
    every_minutes: PositiveFloat | None = 15.0
    """Minutes between two checkpoints within an epoch; null: none."""
    keep_phases: bool = False
    """Keep the model of every phase end in checkpoints/, not only the last sparse and the last dense one."""
    keep_every: PositiveInt | None = None
    """Also keep the model, and its masks in masks/, every N epochs. Default: never."""
    keep_states: list[Epochs] = []
    """Keep the whole state after these epochs, `[85]` or `[85%]` of the run, for `acdc train --fork`."""
    keep_masks_every: PositiveInt | None = None
    """Keep the masks alone, one bit per weight, every N epochs outside dense phases. Default: only at phase
    ends and with kept models."""
    requeue: bool = False
    """In a Slurm job that is to be signalled before its end (`#SBATCH --signal=USR1@120`): once saved, requeue the job,
    whose command needs `--resume auto`."""

    def check(self, run: RunSize) -> Iterator[Misfit]:
        if outside := [str(each) for each in self.keep_states if not 0 < epochs_of(each, run.epochs) < run.epochs]:
            between = f"expected lengths between the start and the end of the run's {run.epochs} epochs"
            yield Misfit("keep_states", f"{', '.join(outside)}: {between}")


class DistributedBlock(Block):
    timeout_minutes: PositiveFloat = 10.0
    """How long a process of several waits for another that hangs, once training has begun (30 minutes before), until
    it ends; all then restart from the last checkpoint."""
