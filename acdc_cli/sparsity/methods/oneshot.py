"""One-shot magnitude pruning: train dense, prune once to the target, fine-tune the rest (arXiv 1506.02626)."""

from __future__ import annotations

from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.sparsifier import Sparsifier
from acdc_cli.sparsity.when import OnceBlock


class Config(OnceBlock):
    pass


class Method(Sparsifier[Config]):
    """At the start of epoch `at`, the largest weights stay, at the target s:

        w <- m * w        m = 1[|w| is among the k largest]

    k = (1 - s) N of the N weights.
    """

    def plan(self) -> PhasePlan:
        return self.config.phases(self.epochs)

    def on_epoch_start(self, moment: Moment) -> None:
        if moment.epoch == self.config.epoch(self.epochs):
            self.masked.set(self.selector.masks(self.masked.magnitudes(), self.config.target))

    def sparsity(self, moment: Moment) -> float:
        return 0.0 if self.phases.at(moment.epoch).kind == "dense" else self.config.target
