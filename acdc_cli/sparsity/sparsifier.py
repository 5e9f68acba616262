"""When a method acts on the masks: the hooks of a run, each with a default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from acdc_cli.recipe.schema import SparsityBlock
from acdc_cli.schedule.time import Moment, Phase, PhasePlan
from acdc_cli.sparsity.masks import MaskedParameters

ConfigT = TypeVar("ConfigT", bound=SparsityBlock)


@dataclass(frozen=True)
class Density:
    """Share of the prunable weights that take part: in the forward pass, and in the weights' gradients."""

    forward: float
    backward: float


class Sparsifier(Generic[ConfigT]):
    """A method of sparse training. As it stands it prunes nothing."""

    def __init__(self, config: ConfigT, masked: MaskedParameters, epochs: int, seed: int = 0) -> None:
        """seed: of the run; what a method draws at random follows from it, never from torch's global generator."""
        self.config = config
        self.masked = masked
        self.epochs = epochs
        self.seed = seed
        self.phases = self.plan()

    def plan(self) -> PhasePlan:
        """The phases of the run."""
        return PhasePlan((Phase("dense", 0, self.epochs),))

    def nominal(self, epoch: int) -> Density:
        """The densities that this epoch trains with, known before the run starts."""
        return Density(1.0, 1.0)

    def on_epoch_start(self, moment: Moment) -> None:
        """Before the first batch of every epoch, and not again when a run goes on within one."""

    def penalty(self) -> Tensor | None:
        """What is added to the loss, or None."""
        return None

    def on_gradients(self, moment: Moment) -> bool:
        """Between the backward pass and the optimiser's step; gradients are unscaled, dense and the same on all ranks.

        Returns whether the optimiser takes this step.
        """
        self.masked.apply_to_gradients()
        return True

    def after_step(self, moment: Moment) -> None:
        """After the optimiser's step."""

    def finish(self) -> None:
        """After the last epoch, before the model is written."""

    def metrics(self) -> dict[str, float]:
        """What the method adds to an epoch's record."""
        return {"mask_sparsity": self.masked.sparsity()}

    def state_dict(self) -> dict[str, Any]:
        """All that the method knows, masks included; only tensors, numbers, strings and containers of them."""
        return {"masks": self.masked.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.masked.load_state_dict(state["masks"])
