"""SNIP: before the first step, keep the weights that the loss is most sensitive to (arXiv 1810.02340)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from acdc_cli import console
from acdc_cli.errors import RecipeError
from acdc_cli.recipe.schema import TargetBlock
from acdc_cli.schedule.time import Moment, Phase, PhasePlan
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.prunable import layer_name
from acdc_cli.sparsity.targeted import Targeted


class Config(TargetBlock):
    batches: PositiveInt = 1
    """Batches whose mean gradient says how much a weight matters; the weights wait for as many steps. The paper takes
    one, on data sets of few classes: with many, take enough to show several images of each."""

    def step_problems(self, epochs: int, steps_per_epoch: int) -> list[tuple[str, str]]:
        if self.batches < steps_per_epoch:
            return []
        text = f"{self.batches} batches are no less than an epoch, which has {steps_per_epoch}"
        return [("batches", f"{text}, and the weights are pruned within the first; make it smaller")]


class Method(Targeted[Config]):
    """Ranks the weights by connection sensitivity, |w dL/dw| of the mean gradient (the paper's normalisation changes no
    rank). At a high sparsity a global ranking may leave a layer without any weight, which is said when it happens.
    """

    def __init__(self, config: Config, masked: MaskedParameters, epochs: int, seed: int = 0) -> None:
        super().__init__(config, masked, epochs, seed)
        self._batches = 0
        """Whose gradients are in the sums."""
        self._sums: dict[str, Tensor] = {}
        """Of the dense gradients so far; empty before the first and after the last."""

    def plan(self) -> PhasePlan:
        return PhasePlan((Phase("sparse", 0, self.epochs),))

    def dense_steps(self, epoch: int, steps_per_epoch: int) -> float:
        """Those that wait for the ranking."""
        return self.config.batches / steps_per_epoch if epoch == 0 else 0.0

    def on_epoch_start(self, moment: Moment) -> None:
        for key, text in self.config.step_problems(moment.epochs, moment.steps_per_epoch):
            raise RecipeError(f"sparsity.{key}: {text}")

    def on_gradients(self, moment: Moment) -> bool:
        if self._batches == self.config.batches:
            return super().on_gradients(moment)
        # here alone the host waits
        if self.masked.finite_gradients().item():
            self._add_gradients()
        if self._batches == self.config.batches:
            self._prune()
        return False

    def state_dict(self) -> dict[str, Any]:
        sums = {name: total.clone() for name, total in self._sums.items()}
        return super().state_dict() | {"batches": self._batches, "gradients": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        weights = self.masked.parameters
        self._batches = state["batches"]
        self._sums = {name: total.to(weights[name].device, copy=True) for name, total in state["gradients"].items()}

    def _add_gradients(self) -> None:
        if not self._sums:
            self._sums = {name: torch.zeros_like(weight) for name, weight in self.masked.parameters.items()}
        for name, weight in self.masked.parameters.items():
            if weight.grad is not None:
                self._sums[name] += weight.grad
        self._batches += 1

    def _prune(self) -> None:
        sensitivity = {
            name: (weight.detach() * self._sums[name]).abs() for name, weight in self.masked.parameters.items()
        }
        self._sums = {}
        self.masked.set(self.selector.masks(sensitivity, self.config.target))
        if empty := [layer_name(name) for name, mask in self.masked.masks.items() if not mask.any()]:
            console.warn(
                f"SNIP leaves no weight in {len(empty)} of {len(self.masked.masks)} layers, {', '.join(empty[:3])}"
                f"{', …' if len(empty) > 3 else ''}: nothing passes through them for the rest of the run; a lower "
                "sparsity.target or the distribution erk keeps some in every layer"
            )
