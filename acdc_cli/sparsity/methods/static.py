"""Static sparse training, the baseline of methods that choose their weights: a random mask that never changes."""

from __future__ import annotations

from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.random_start import RandomStartKeys, start_at_random
from acdc_cli.sparsity.sparsifier import Sparsifier
from acdc_cli.sparsity.when import in_turn


class Config(RandomStartKeys):
    """No keys of its own."""

    at_once = {}


class Method(Sparsifier[Config]):
    def plan(self) -> PhasePlan:
        return in_turn(("sparse", self.epochs))

    def on_epoch_start(self, moment: Moment) -> None:
        if moment.step == 0:
            start_at_random(self.masked, self.selector, self.config.target, self.seed)
