"""AC/DC: sparse and dense phases in turn give a sparse and a dense model in one run (P1 3.2)."""

from __future__ import annotations

from pydantic import PositiveInt

from acdc_cli.recipe.schema import Epochs, TargetBlock, epochs_of
from acdc_cli.schedule.time import Moment, Phase, PhasePlan
from acdc_cli.sparsity.masks import MaskedParameters
from acdc_cli.sparsity.selection import Selector
from acdc_cli.sparsity.sparsifier import Density, Sparsifier

_SEARCHED_EPOCHS = 1000


class Config(TargetBlock):
    """Dense warm-up; sparse, dense, …, sparse phases; the last dense phase; the last sparse phase."""

    warmup_epochs: Epochs = "10%"
    """Dense epochs before the first sparse phase: `10` (P1), or `10%` of the run (P2)."""
    sparse_epochs: PositiveInt = 5
    """Length of a sparse phase."""
    dense_epochs: PositiveInt = 5
    """Length of a dense phase."""
    last_dense_epochs: Epochs = 10
    """Length of the last dense phase, which ends in the dense model."""
    last_sparse_epochs: Epochs = 15
    """Length of the last sparse phase, which ends in the sparse model."""
    reset_momentum: bool = True
    """Zero the optimiser's state of the pruned layers on entering a dense phase."""

    def problems(self, epochs: int) -> list[tuple[str, str]]:
        found = [
            (key, f"{getattr(self, key)} of {epochs} epochs is no epoch at all; the last phases need at least one")
            for key in ("last_dense_epochs", "last_sparse_epochs")
            if epochs_of(getattr(self, key), epochs) == 0
        ]
        if not found and not self._fits(epochs):
            found.append(("sparse_epochs", self._misfit(epochs)))
        return found

    def phases(self, epochs: int) -> PhasePlan:
        """Raises ValueError where `problems` finds some."""
        if not self._fits(epochs):
            raise ValueError(self._misfit(epochs))
        warmup, last_dense, last_sparse = self._fixed(epochs)
        rounds = (self._middle(epochs) + self.dense_epochs) // (self.sparse_epochs + self.dense_epochs)
        plan = [Phase("dense", 0, warmup)] if warmup else []
        for number in range(rounds):
            start = warmup + number * (self.sparse_epochs + self.dense_epochs)
            dense_epochs = self.dense_epochs if number < rounds - 1 else last_dense
            sparse = Phase("sparse", start, start + self.sparse_epochs)
            plan += [sparse, Phase("dense", sparse.end, sparse.end + dense_epochs)]
        return PhasePlan((*plan, Phase("sparse", epochs - last_sparse, epochs)))

    def _fixed(self, epochs: int) -> tuple[int, int, int]:
        """Epochs of the warm-up, of the last dense phase and of the last sparse phase."""
        return (
            epochs_of(self.warmup_epochs, epochs),
            epochs_of(self.last_dense_epochs, epochs),
            epochs_of(self.last_sparse_epochs, epochs),
        )

    def _middle(self, epochs: int) -> int:
        """Epochs between the warm-up and the last dense phase; negative where even those do not fit."""
        return epochs - sum(self._fixed(epochs))

    def _fits(self, epochs: int) -> bool:
        middle, dense, sparse = self._middle(epochs), self.dense_epochs, self.sparse_epochs
        return min(self._fixed(epochs)[1:]) > 0 and middle >= sparse and (middle + dense) % (sparse + dense) == 0

    def _misfit(self, epochs: int) -> str:
        warmup, last_dense, last_sparse = self._fixed(epochs)
        middle, sparse, dense = self._middle(epochs), self.sparse_epochs, self.dense_epochs
        fitting = ", ".join(str(sparse + number * (sparse + dense)) for number in range(3))
        lie_between = f"{middle} lie" if middle >= 0 else f"{-middle} too few are left"
        shorter = next((total for total in range(epochs - 1, 0, -1) if self._fits(total)), None)
        longer = next((total for total in range(epochs + 1, epochs + _SEARCHED_EPOCHS) if self._fits(total)), None)
        totals = " or ".join(str(total) for total in (shorter, longer) if total is not None)
        return (
            f"of {epochs} epochs, {lie_between} between the warm-up ({warmup}) and the last phases ({last_dense} dense "
            f"and {last_sparse} sparse); sparse phases of {sparse} with dense phases of {dense} between them take "
            f"{fitting}, … epochs: change a length" + (f", or train {totals} epochs" if totals else "")
        )


class Method(Sparsifier[Config]):
    def __init__(self, config: Config, masked: MaskedParameters, epochs: int, seed: int = 0) -> None:
        super().__init__(config, masked, epochs, seed)
        self.selector = Selector.of(config)

    def plan(self) -> PhasePlan:
        return self.config.phases(self.epochs)

    def nominal(self, epoch: int) -> Density:
        if self.phases.at(epoch).kind == "dense":
            return Density(1.0, 1.0)
        kept = self.selector.density(self.masked.shapes, self.config.target)
        return Density(kept, kept)

    def on_epoch_start(self, moment: Moment) -> None:
        if not self.phases.begins(moment.epoch):
            return
        if self.phases.at(moment.epoch).kind == "sparse":
            self._compress()
        elif moment.epoch > 0:
            self._decompress()

    def _compress(self) -> None:
        self.masked.set(self.selector.masks(self.masked.magnitudes(), self.config.target))

    def _decompress(self) -> None:
        self.masked.fill()
        if self.config.reset_momentum:
            self.masked.reset_momentum()
