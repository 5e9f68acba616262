"""The course of the size of training samples over a run: the blocks of `data.resolution`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from pydantic import model_validator

from acdc_cli.recipe.blocks.base import Block, Epochs, Misfit, Pixels, RunSize, Share, epochs_of


class ResolutionStep(Block):
    since: Share
    """Share of the run at which this size begins: 0.8 of 100 epochs is epoch 80."""
    size: Pixels
    """Side of the training crops, in pixels."""


class ResolutionRamp(Block):
    start_size: Pixels
    """Side of the training crops up to and including epoch `begin`, in pixels."""
    end_size: Pixels
    """Side of the training crops from epoch `end` on, in pixels."""
    begin: Epochs = 0
    """Last epoch with `start_size`, as a number or a share of the run such as 35%."""
    end: Epochs
    """First epoch with `end_size`."""
    step: Pixels = 32
    """All sizes are multiples of this number of pixels; `start_size` and `end_size` must be, too."""

    @model_validator(mode="after")
    def _in_steps(self) -> Self:
        for key in ("start_size", "end_size"):
            if getattr(self, key) % self.step:
                raise ValueError(
                    f"{key}: {getattr(self, key)} is not a multiple of step, {self.step}; change one of them"
                )
        return self

    def check(self, run: RunSize) -> Iterator[Misfit]:
        begin, end = epochs_of(self.begin, run.epochs), epochs_of(self.end, run.epochs)
        if begin >= end:
            yield Misfit("end", f"the ramp begins at epoch {begin} and ends at epoch {end}; it must end later")
        elif end > run.epochs:
            last = f"the run has {run.epochs} epochs"
            yield Misfit("end", f"the ramp would end at epoch {end}, but {last}; make it earlier")


SizeCourse = int | list[ResolutionStep] | ResolutionRamp
"""One size, or how it changes."""
