"""What methods share whose sparsity rises along a cubic, epoch by epoch (arXiv 1710.01878)."""

from __future__ import annotations

from typing import TypeVar

from pydantic import PositiveInt

from acdc_cli.recipe.schema import Epochs, TargetBlock, epochs_of
from acdc_cli.schedule.courses import cubic
from acdc_cli.schedule.time import Phase, PhasePlan
from acdc_cli.sparsity.targeted import Targeted


class RampBlock(TargetBlock):
    begin: Epochs = 0
    """Epochs of dense training before the sparsity starts to rise, as a number or a share of the run."""
    end: Epochs = "75%"
    """Epoch at whose start the target is reached, exactly, whether or not a regular update falls on it."""
    every_epochs: PositiveInt = 5
    """Epochs between two steps of the sparsity."""

    def problems(self, epochs: int) -> list[tuple[str, str]]:
        begin, end = self.ramp(epochs)
        if end >= epochs:
            return [
                ("end", f"the target would be reached at epoch {end}, but epoch {epochs - 1} is the last that starts")
            ]
        if begin > end:
            return [("begin", f"the sparsity would rise from epoch {begin} to epoch {end}; begin must come before end")]
        if self.n_of_m and begin < end:
            only = f"{self.pattern} has one sparsity only, and {self.method} reaches its target over many"
            return [("pattern", f"{only}; take another method, such as acdc, or another pattern")]
        return []

    def doubts(self, epochs: int, steps_per_epoch: int) -> list[tuple[str, str]]:
        begin, end = self.ramp(epochs)
        if not 0 < end - begin <= self.every_epochs:
            return []
        rises = f"the sparsity has epochs {begin} to {end} to rise, no more than the {self.every_epochs} of one step"
        return [("every_epochs", f"{rises}, so it jumps from 0 to the target; make it smaller")]

    def phases(self, epochs: int) -> PhasePlan:
        begin, end = self.ramp(epochs)
        dense = (Phase("dense", 0, begin),) if begin else ()
        ramp = (Phase("ramp", begin, end),) if begin < end else ()
        return PhasePlan((*dense, *ramp, Phase("sparse", end, epochs)))

    def updates_at(self, epoch: int, epochs: int) -> bool:
        """Does the sparsity change at the start of this epoch?"""
        begin, end = self.ramp(epochs)
        return epoch == end or (begin < epoch < end and (epoch - begin) % self.every_epochs == 0)

    def sparsity(self, epoch: int, epochs: int) -> float:
        """Of the masks in this epoch: a staircase, because it stays between two updates."""
        begin, end = self.ramp(epochs)
        if epoch >= end:
            return self.target
        if epoch < begin:
            return 0.0
        since_update = (epoch - begin) % self.every_epochs
        return cubic(epoch - since_update - begin, end - begin, self.target)

    def ramp(self, epochs: int) -> tuple[int, int]:
        """The epochs at which the sparsity starts to rise and reaches the target; the same one where it jumps."""
        return epochs_of(self.begin, epochs), epochs_of(self.end, epochs)


ConfigT = TypeVar("ConfigT", bound=RampBlock)


class Ramp(Targeted[ConfigT]):
    """Phases and densities of such a run; what is pruned, a method says."""

    def plan(self) -> PhasePlan:
        return self.config.phases(self.epochs)

    def sparsity(self, epoch: int) -> float:
        """Of the masks in this epoch."""
        return self.config.sparsity(epoch, self.epochs)
