"""SNIP: before the first step, keep the weights that the loss is most sensitive to (arXiv 1810.02340)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import PositiveInt

from acdc_cli.errors import RunError
from acdc_cli.recipe.blocks.base import Misfit, RunSize
from acdc_cli.recipe.blocks.sparsity import TargetBlock
from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.sparsifier import EpochWork, Sparsifier
from acdc_cli.sparsity.when import in_turn
from acdc_cli.sparsity.where import warn_of_empty_layers
from acdc_cli.sparsity.which import GradientSums


class Config(TargetBlock):
    at_once = {}
    batches: PositiveInt = 1
    """Batches whose mean gradient ranks the weights; training starts after as many steps. The paper takes one, on data
    sets with few classes; with many classes, take enough for several images of each."""

    def check(self, run: RunSize) -> Iterator[Misfit]:
        yield from super().check(run)
        if run.steps_per_epoch and self.batches >= run.steps_per_epoch:
            text = f"expected fewer than the {run.steps_per_epoch} batches of the first epoch"
            yield Misfit("batches", f"{text}, which prunes the weights, found {self.batches}")


class Method(Sparsifier[Config]):
    """Ranks the weights by connection sensitivity, s = |w dL/dw| of the mean gradient (the paper's normalisation
    changes no rank). At a high sparsity a global ranking may leave a layer without weights; acdc then prints a warning.
    """

    def __init__(self, config: Config, masked: MaskedParameters, epochs: int, seed: int = 0) -> None:
        super().__init__(config, masked, epochs, seed)
        self._batches = 0
        """Batches whose gradients are in the sums."""
        self.gradients = GradientSums(masked)
        """Empty before the first batch and after the last."""

    def plan(self) -> PhasePlan:
        return in_turn(("sparse", self.epochs))

    def cost(self, epoch: int, steps_per_epoch: int) -> EpochWork:
        """The steps before the ranking are dense."""
        dense_steps = self.config.batches / steps_per_epoch if epoch == 0 else 0.0
        return replace(super().cost(epoch, steps_per_epoch), dense_steps=dense_steps)

    def on_gradients(self, moment: Moment) -> bool:
        if self._batches == self.config.batches:
            return super().on_gradients(moment)
        # here alone the host waits
        if self.masked.finite_gradients().item():
            self.gradients.add()
            self._batches += 1
        if self._batches == self.config.batches:
            self._prune()
        return False

    def prune_trained(self, moment: Moment, batch_size: int) -> None:
        self.config.require(RunSize(moment.epochs, moment.steps_per_epoch))
        for gradients in self.training.gradients(moment, self.config.batches, batch_size):
            for name, gradient in gradients.items():
                self.masked.parameters[name].grad = gradient
            self.on_gradients(moment)
        if self._batches < self.config.batches:
            raise RunError(f"{self._batches} of {self.config.batches} gradients are finite; the model has diverged")
        for weight in self.masked.parameters.values():
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"batches": self._batches, "gradients": self.gradients.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._batches = state["batches"]
        self.gradients.load_state_dict(state["gradients"])

    def _prune(self) -> None:
        sums, weights = self.gradients.sums, self.masked.parameters
        sensitivity = {name: (weight.detach() * sums[name]).abs() for name, weight in weights.items()}
        self.gradients.clear()
        self.masked.set(self.selector.masks(sensitivity, self.config.target))
        warn_of_empty_layers("SNIP", self.masked.masks)
