"""One-shot magnitude pruning: train dense, prune once to the target, fine-tune the rest (arXiv 1506.02626)."""

from __future__ import annotations

from collections.abc import Iterator

from acdc_cli.recipe.schema import Epochs, Misfit, RunSize, TargetBlock, epochs_of
from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.sparsifier import Sparsifier
from acdc_cli.sparsity.when import in_turn


class Config(TargetBlock):
    at_once = {"at": 0}
    at: Epochs = "50%"
    """Epoch at whose start the weights are pruned, as a number or a share of the run; 0 with `from_checkpoint`."""

    def check(self, run: RunSize) -> Iterator[Misfit]:
        yield from super().check(run)
        at = epochs_of(self.at, run.epochs)
        if at >= run.epochs:
            last = f"epoch {run.epochs - 1} is the last"
            yield Misfit("at", f"the weights would be pruned at epoch {at}, but {last}; make it earlier")


class Method(Sparsifier[Config]):
    def plan(self) -> PhasePlan:
        at = epochs_of(self.config.at, self.epochs)
        return in_turn(("dense", at), ("sparse", self.epochs - at))

    def on_epoch_start(self, moment: Moment) -> None:
        if moment.epoch == epochs_of(self.config.at, self.epochs):
            self.masked.set(self.selector.masks(self.masked.magnitudes(), self.config.target))

    def sparsity(self, moment: Moment) -> float:
        return 0.0 if self.phases.at(moment.epoch).kind == "dense" else self.config.target
