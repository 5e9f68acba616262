"""DSD: train dense, prune once and train sparse, free every weight and train dense again (arXiv 1607.04381)."""

from __future__ import annotations

from collections.abc import Iterator

from acdc_cli.recipe.blocks.base import Epochs, Misfit, RunSize, epochs_of
from acdc_cli.recipe.blocks.sparsity import TargetBlock
from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.sparsifier import Sparsifier
from acdc_cli.sparsity.when import in_turn


class Config(TargetBlock):
    sparse_from: Epochs = "50%"
    """Epoch at whose start the smallest weights are pruned, as a number or a share of the run; 0 with
    `from_checkpoint`. The model has the target sparsity until `dense_from`."""
    dense_from: Epochs = "75%"
    """Epoch at whose start every weight is freed; pruned weights start from zero. The paper trains this last phase at a
    tenth of the learning rate: let `optim.schedule` fall that far by then."""

    def check(self, run: RunSize) -> Iterator[Misfit]:
        yield from super().check(run)
        pruned, freed = epochs_of(self.sparse_from, run.epochs), epochs_of(self.dense_from, run.epochs)
        if freed >= run.epochs:
            last = f"epoch {run.epochs - 1} is the last"
            yield Misfit("dense_from", f"the weights would be freed at epoch {freed}, but {last}; make it earlier")
        elif pruned >= freed:
            pair = f"the weights would be pruned at epoch {pruned} and freed at epoch {freed}"
            yield Misfit("sparse_from", f"{pair}; sparse_from must come before dense_from")


class Method(Sparsifier[Config]):
    """The sparse phase keeps the k = (1 - s) N largest of the N weights, dense phases train all (algorithm 1):

        sparse: m = 1[|w| is among the k largest]        dense: m = 1        w <- m * (w - lr dL/dw)

    The optimiser's state is kept, as in the paper: freed weights return without momentum.
    """

    def plan(self) -> PhasePlan:
        pruned, freed = epochs_of(self.config.sparse_from, self.epochs), epochs_of(self.config.dense_from, self.epochs)
        return in_turn(("dense", pruned), ("sparse", freed - pruned), ("dense", self.epochs - freed))

    def on_epoch_start(self, moment: Moment) -> None:
        if not self.phases.begins(moment.epoch):
            return
        if self.phases.at(moment.epoch).kind == "sparse":
            self.masked.set(self.selector.masks(self.masked.magnitudes(), self.config.target))
        elif moment.epoch > 0:
            self.masked.fill()

    def sparsity(self, moment: Moment) -> float:
        return 0.0 if self.phases.at(moment.epoch).kind == "dense" else self.config.target
