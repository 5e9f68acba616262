"""GraNet: the sparsity rises along a cubic, and each update also drops and regrows weights (arXiv 2106.10404)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from acdc_cli.recipe.blocks.base import Epochs, Misfit, RunSize, Sparsity, epochs_of
from acdc_cli.recipe.blocks.sparsity import TargetBlock
from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.exchange import ExchangeKeys, drop_and_grow
from acdc_cli.sparsity.how_much import Cubic, above_target
from acdc_cli.sparsity.random_start import start_at_random
from acdc_cli.sparsity.sparsifier import EpochWork, Sparsifier
from acdc_cli.sparsity.when import in_turn
from acdc_cli.sparsity.which import gradient_magnitudes


class Config(ExchangeKeys, TargetBlock):
    end: Epochs = "100%"
    """Epoch from which the masks stay fixed, as a number or a share of the run."""
    initial_sparsity: Sparsity = 0.5
    """Share of the weights that is pruned at random before the first step, with ERK; 0 starts dense."""
    prune_until: Epochs = "30%"
    """Epoch at which the cubic reaches the target, as a number or a share of the run; at latest the last update."""

    def check(self, run: RunSize) -> Iterator[Misfit]:
        yield from super().check(run)
        yield from above_target(self.initial_sparsity, self.target)
        if (reached := epochs_of(self.prune_until, run.epochs)) > run.epochs:
            yield Misfit("prune_until", f"the target would be reached at epoch {reached}, after the end of the run")


class Method(Sparsifier[Config]):
    """Updates prune to s = s_f + (s_0 - s_f) (1 - t/T)^3, drop, grow by |dL/dw|, and skip the step (algorithm 1)."""

    def plan(self) -> PhasePlan:
        reached = epochs_of(self.config.prune_until, self.epochs)
        return in_turn(("ramp", reached), ("sparse", self.epochs - reached))

    def sparsity(self, moment: Moment) -> float:
        end = min(self.phases.phases[0].end * moment.steps_per_epoch, self.config.last_update(moment))
        return Cubic(0, end, self.config.target, self.config.initial_sparsity).at(self.config.latest_update(moment))

    def cost(self, epoch: int, steps_per_epoch: int) -> EpochWork:
        updates = self.config.updates_in(epoch, self.epochs, steps_per_epoch)
        return replace(super().cost(epoch, steps_per_epoch), dense_gradients=updates / steps_per_epoch)

    def on_epoch_start(self, moment: Moment) -> None:
        super().on_epoch_start(moment)
        if moment.step == 0:
            start_at_random(self.masked, replace(self.selector, distribution="erk"), self.sparsity(moment), self.seed)

    def on_gradients(self, moment: Moment) -> bool:
        if not self.config.updates_at(moment) or not self.masked.finite_gradients().item():
            return super().on_gradients(moment)
        scores = gradient_magnitudes(self.masked)
        self.masked.set(self.selector.masks(self.masked.magnitudes(), self.sparsity(moment)))
        self.masked.set(drop_and_grow(self.masked, self.config.exchanged(moment), scores))
        return False
