"""Top-KAST: the forward pass uses the largest weights, and more weights learn than it uses (arXiv 2106.03517)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor

from acdc_cli.recipe.blocks.base import Distribution, Misfit, RunSize, Sparsity
from acdc_cli.recipe.blocks.sparsity import TargetBlock
from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.latent import LatentWeights
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.sparsifier import EpochWork, Sparsifier
from acdc_cli.sparsity.when import in_turn, ranks_after


class Config(TargetBlock):
    """`target` is the sparsity of the forward pass. For the backward pass, `layers` are lowered in proportion."""

    distribution: Distribution = "uniform"
    """`uniform`: the same sparsity in every layer, as in the paper. `global`: one ranking of all weights. `erk`: layers
    with more weights are sparser."""
    backward_sparsity: Sparsity
    """Fraction of the prunable weights that gets no gradient, less than `target`; 0 trains all weights. Weights between
    the two sparsities learn, although the forward pass does not use them."""
    every: PositiveInt = 100
    """Steps between two rankings of the weights, to the end of the run (the paper: 1; 100 is as good)."""

    @classmethod
    def proposed(cls, run: RunSize, target: float) -> dict[str, Any]:
        # of twice as many weights as the forward pass uses
        backward = round(max(0.0, 2 * target - 1), 4)
        every = min(100, max(1, (run.steps_per_epoch or 200) // 2))
        return super().proposed(run, target) | {"backward_sparsity": backward, "every": every}

    @model_validator(mode="after")
    def _leaves_room_to_explore(self) -> Self:
        if self.backward_sparsity and self.backward_sparsity >= self.target:
            raise ValueError(
                f"backward_sparsity: expected less than the target, {self.target:g}, found {self.backward_sparsity:g}"
            )
        if self.n_of_m and self.backward_sparsity:
            raise ValueError(
                f"pattern: {self.pattern} has a single sparsity, but the backward pass needs a lower one; "
                "set backward_sparsity: 0, which trains all weights, or use another pattern"
            )
        return self

    def check(self, run: RunSize) -> Iterator[Misfit]:
        yield from super().check(run)
        if run.steps_per_epoch and self.every >= (steps := run.epochs * run.steps_per_epoch):
            text = f"the run has {steps} steps, so the weights are never ranked again; make it smaller"
            yield Misfit("every", text, stops=False)


class Method(Sparsifier[Config]):
    """Forward set A: the largest weights at the target. Backward set B, which contains A: the largest at the backward
    sparsity. Between two steps the model holds A; weights outside B are stored and do not change.

    Weight decay d acts after the optimiser's step, outside its momentum (2.3, with L2):
    w <- w - lr d w in A, w <- w - lr d w / (1 - target) in B without A.
    """

    revives_values = True

    def __init__(self, config: Config, masked: MaskedParameters, epochs: int, seed: int = 0) -> None:
        super().__init__(config, masked, epochs, seed)
        self.latent = LatentWeights(masked)
        self.weight_decay = 0.0
        self._strengths: list[Tensor] = []
        """Decay of each weight, in multiples of `weight_decay`."""

    def plan(self) -> PhasePlan:
        return in_turn(("sparse", self.epochs))

    def cost(self, epoch: int, steps_per_epoch: int) -> EpochWork:
        return EpochWork(self.living(self.config.target), self.living(self.config.backward_sparsity))

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        self.weight_decay = weight_decay
        return [{"params": list(self.masked.parameters.values()), "weight_decay": 0.0}]

    def on_epoch_start(self, moment: Moment) -> None:
        if moment.step == 0:
            self.latent.store()
            self._choose()

    def on_gradients(self, moment: Moment) -> bool:
        self.masked.apply_to_gradients()
        self.latent.install()
        return True

    def after_step(self, moment: Moment) -> None:
        finite = self.masked.finite_gradients()
        self._decay(finite)
        self.latent.store()
        # the one place where the host waits, and only at updates
        if ranks_after(moment, self.config.every) and finite.item():
            self._choose()
        else:
            self.masked.apply()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"latent": self.latent.state_dict()}

    def later_bytes(self, model: int) -> int:
        return self.masked.total  # the backward masks

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.latent.load_state_dict(state["latent"])
        self._strengthen()

    def _choose(self) -> None:
        """Choose A and B by the current weights, which the model holds; it then holds A."""
        magnitudes = self.latent.magnitudes()
        acting = self.selector.masks(magnitudes, self.config.target)
        self.masked.set(acting, backward=self.selector.masks(magnitudes, self.config.backward_sparsity))
        self._strengthen()

    def _strengthen(self) -> None:
        beyond = 1 / (1 - self.config.target)
        self._strengths = [
            (beyond * self.masked.backward_masks[name].to(weight.dtype)).masked_fill_(self.masked.masks[name], 1)
            for name, weight in self.masked.parameters.items()
        ]

    def _decay(self, taken: Tensor) -> None:
        """Shrink the weights, which the model holds, unless the optimiser has skipped its step.

        taken: a boolean on the device; if false, the weights shrink by exactly nothing, without a wait for the device.
        """
        weights = [weight.detach() for weight in self.masked.parameters.values()]
        shares = torch._foreach_mul(self._strengths, taken * (self.masked.learning_rate * self.weight_decay))
        torch._foreach_addcmul_(weights, weights, shares, value=-1)
