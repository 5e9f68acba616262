"""Gradual magnitude pruning: sparsity rises along a cubic, pruned weights never return (arXiv 1710.01878)."""

from __future__ import annotations

from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.ramp import Ramp, RampBlock


class Config(RampBlock):
    """The keys of the cubic are all it has."""

    def problems(self, epochs: int) -> list[tuple[str, str]]:
        begin, end = self.ramp(epochs)
        if begin == end:
            jump = f"the sparsity would rise from epoch {begin} to epoch {end}; begin must come before end"
            return [("begin", f"{jump} (all at once is method oneshot)")]
        return super().problems(epochs)


class Method(Ramp[Config]):
    def on_epoch_start(self, moment: Moment) -> None:
        if self.config.updates_at(moment.epoch, self.epochs):
            self.masked.set(self.selector.masks(self.masked.magnitudes(), self.sparsity(moment.epoch)))
