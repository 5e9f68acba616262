"""What methods share that know each epoch's sparsity beforehand: its densities follow."""

from __future__ import annotations

from typing import TypeVar

from acdc_cli.recipe.schema import TargetBlock
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.selection import Selector
from acdc_cli.sparsity.sparsifier import Density, Sparsifier

ConfigT = TypeVar("ConfigT", bound=TargetBlock)


class Targeted(Sparsifier[ConfigT]):
    """As it stands it has the target's sparsity in every epoch."""

    def __init__(self, config: ConfigT, masked: MaskedParameters, epochs: int, seed: int = 0) -> None:
        super().__init__(config, masked, epochs, seed)
        self.selector = Selector.of(config)

    def sparsity(self, epoch: int) -> float:
        """Of the masks at this epoch's end."""
        return self.config.target

    def nominal(self, epoch: int) -> Density:
        kept = self.selector.density(self.masked.shapes, self.sparsity(epoch))
        return Density(kept, kept)

    def kept(self, epoch: int) -> dict[str, int] | None:
        return self.selector.counts(self.masked.shapes, self.sparsity(epoch))
