"""Gradual magnitude pruning: sparsity rises along a cubic, pruned weights never return (arXiv 1710.01878)."""

from __future__ import annotations

from collections.abc import Iterator

from acdc_cli.recipe.blocks.base import Misfit, RunSize
from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.cubic import CubicKeys
from acdc_cli.sparsity.sparsifier import Sparsifier


class Config(CubicKeys):
    """Only the keys of the cubic."""

    def check(self, run: RunSize) -> Iterator[Misfit]:
        begin, end = self.ramp(run.epochs)
        if begin == end:
            jump = f"the sparsity would rise from epoch {begin} to epoch {end}; begin must come before end"
            yield Misfit("begin", f"{jump} (to prune all at once, use method oneshot)")
        else:
            yield from super().check(run)


class Method(Sparsifier[Config]):
    """The smallest weights are pruned, at a sparsity that rises from epoch t0 (`begin`) to epoch t1 (`end`), eq. 1:

        s(t) = s_f + (s_0 - s_f) (1 - (t - t0) / (t1 - t0))^3

    s_0 is `initial_sparsity`, s_f the target.
    """

    def plan(self) -> PhasePlan:
        return self.config.phases(self.epochs)

    def sparsity(self, moment: Moment) -> float:
        return self.config.sparsity(moment.epoch, self.epochs)

    def on_epoch_start(self, moment: Moment) -> None:
        if self.config.updates_at(moment.epoch, self.epochs):
            self.masked.set(self.selector.masks(self.masked.magnitudes(), self.sparsity(moment)))
