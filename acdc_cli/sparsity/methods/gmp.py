"""Gradual magnitude pruning: sparsity rises along a cubic, pruned weights never return (arXiv 1710.01878)."""

from __future__ import annotations

from pydantic import PositiveInt

from acdc_cli.recipe.schema import Epochs, PrunedBlock, epochs_of
from acdc_cli.schedule.curves import cubic
from acdc_cli.schedule.time import Moment, Phase, PhasePlan
from acdc_cli.sparsity.masks import MaskedParameters
from acdc_cli.sparsity.selection import Selector
from acdc_cli.sparsity.sparsifier import Density, Sparsifier


class Config(PrunedBlock):
    begin: Epochs = 0
    """Epochs of dense training before the sparsity starts to rise, as a number or a share of the run."""
    end: Epochs = "75%"
    """Epoch at whose start the target is reached, exactly, whether or not a regular update falls on it."""
    every_epochs: PositiveInt = 5
    """Epochs between two updates of the masks."""

    def problems(self, epochs: int) -> list[tuple[str, str]]:
        if self.n_of_m:
            only = f"{self.pattern} has one sparsity only, and gmp reaches its target over many"
            return [("pattern", f"{only}; take another method, such as acdc, or another pattern")]
        begin, end = self._ramp(epochs)
        if end >= epochs:
            return [
                ("end", f"the target would be reached at epoch {end}, but epoch {epochs - 1} is the last that starts")
            ]
        if begin >= end:
            return [("begin", f"the sparsity would rise from epoch {begin} to epoch {end}; begin must come before end")]
        return []

    def phases(self, epochs: int) -> PhasePlan:
        begin, end = self._ramp(epochs)
        dense = (Phase("dense", 0, begin),) if begin else ()
        return PhasePlan((*dense, Phase("ramp", begin, end), Phase("sparse", end, epochs)))

    def updates_at(self, epoch: int, epochs: int) -> bool:
        """Are the masks updated at the start of this epoch?"""
        begin, end = self._ramp(epochs)
        return epoch == end or (begin < epoch < end and (epoch - begin) % self.every_epochs == 0)

    def sparsity(self, epoch: int, epochs: int) -> float:
        """Of the masks in this epoch: a staircase, because they stay between two updates."""
        begin, end = self._ramp(epochs)
        if epoch >= end:
            return self.target
        since_update = max(epoch - begin, 0) % self.every_epochs
        return cubic(epoch - since_update - begin, end - begin, self.target)

    def _ramp(self, epochs: int) -> tuple[int, int]:
        return epochs_of(self.begin, epochs), epochs_of(self.end, epochs)


class Method(Sparsifier[Config]):
    def __init__(self, config: Config, masked: MaskedParameters, epochs: int, seed: int = 0) -> None:
        super().__init__(config, masked, epochs, seed)
        self.selector = Selector.of(config)

    def plan(self) -> PhasePlan:
        return self.config.phases(self.epochs)

    def nominal(self, epoch: int) -> Density:
        sparsity = self.config.sparsity(epoch, self.epochs)
        kept = self.selector.density(self.masked.shapes, sparsity)
        return Density(kept, kept)

    def on_epoch_start(self, moment: Moment) -> None:
        if self.config.updates_at(moment.epoch, self.epochs):
            sparsity = self.config.sparsity(moment.epoch, self.epochs)
            self.masked.set(self.selector.masks(self.masked.magnitudes(), sparsity))
