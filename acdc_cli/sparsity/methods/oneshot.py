"""One-shot magnitude pruning: train dense, prune once to the target, fine-tune what is left (arXiv 1506.02626)."""

from __future__ import annotations

from acdc_cli.recipe.schema import Epochs, TargetBlock, epochs_of
from acdc_cli.schedule.time import Moment, Phase, PhasePlan
from acdc_cli.sparsity.targeted import Targeted


class Config(TargetBlock):
    at: Epochs = "50%"
    """Epoch at whose start the weights are pruned, as a number or a share of the run; 0 with `from_checkpoint`."""

    def problems(self, epochs: int) -> list[tuple[str, str]]:
        at = epochs_of(self.at, epochs)
        if at < epochs:
            return []
        return [("at", f"the weights would be pruned at epoch {at}, but epoch {epochs - 1} is the last that starts")]


class Method(Targeted[Config]):
    def plan(self) -> PhasePlan:
        at = epochs_of(self.config.at, self.epochs)
        dense = (Phase("dense", 0, at),) if at else ()
        return PhasePlan((*dense, Phase("sparse", at, self.epochs)))

    def on_epoch_start(self, moment: Moment) -> None:
        if self.phases.at(moment.epoch) == Phase("sparse", moment.epoch, self.epochs):
            self.masked.set(self.selector.masks(self.masked.magnitudes(), self.config.target))

    def sparsity(self, epoch: int) -> float:
        return 0.0 if self.phases.at(epoch).kind == "dense" else self.config.target
