"""Deep rewiring (DEEP R): a weight that changes its sign dies, another is born at random (arXiv 1711.05136)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from acdc_cli.recipe.blocks.base import Epochs
from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.exchange import living
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.random_start import RandomStartKeys, start_at_random
from acdc_cli.sparsity.sparsifier import Sparsifier
from acdc_cli.sparsity.when import UpdateKeys, in_turn
from acdc_cli.sparsity.where import largest
from acdc_cli.sparsity.which import generator, random_scores


class Config(UpdateKeys, RandomStartKeys):
    """The paper updates at every step: `every: 1`. With longer intervals, the sign at the update decides."""

    end: Epochs = "100%"
    """Epoch from which the masks stay fixed, as a number or a share of the run. The paper rewires throughout; there is
    no update after the last step, because the weights that it grows would never be trained."""
    l1: NonNegativeFloat = 1e-5
    """L1 penalty (the paper's alpha), which pulls weights that the loss does not need to zero, where they die."""
    temperature: NonNegativeFloat = 0.0
    """T of the random walk: each step adds noise of variance 2 · learning rate · T to the living weights; 0: none. The
    noise of all steps since the last update, skipped steps included, is drawn at once at the update."""


class Method(Sparsifier[Config]):
    """Every living weight has a sign z: that of its initial value, or a random one if it is born later. It moves
    with the L1 penalty α and normal noise ν, and dies where zw < 0:

        w <- w - lr (dL/dw + αz) + sqrt(2 lr T) ν

    At an update, weights of the wrong sign die, and as many dormant weights of the same layer are born, all with the
    same probability, including those that just died (algorithm 1). A weight is born as a living 0.
    """

    def __init__(self, config: Config, masked: MaskedParameters, epochs: int, seed: int = 0) -> None:
        super().__init__(config, masked, epochs, seed)
        self.updates = 0
        # in the weights' dtype and layout: a sum of unlike tensors would leave the fused path
        self._signs = {name: torch.zeros_like(weight) for name, weight in masked.parameters.items()}
        """1 or -1, and 0 where dormant."""
        self._variance = 0.0
        """Variance of the noise since the last update."""

    def plan(self) -> PhasePlan:
        return in_turn(("sparse", self.epochs))

    def on_epoch_start(self, moment: Moment) -> None:
        super().on_epoch_start(moment)
        if self.config.updates_at(moment):
            self.update(moment)
        if moment.step == 0:
            start_at_random(self.masked, self.selector, self.config.target, self.seed)
            for name, weight in self.masked.parameters.items():
                self._signs[name].copy_(weight.detach().sign())
                self._draw_signs(name, self.masked.masks[name] & (weight == 0), moment)

    def on_gradients(self, moment: Moment) -> bool:
        steps = super().on_gradients(moment)
        self._variance += 2 * self.masked.learning_rate * self.config.temperature
        if self.config.l1:
            self._pull_to_zero()
        return steps

    def after_step(self, moment: Moment) -> None:
        following = self.config.update_after(moment)
        # the one place where the host waits, and only at updates
        if following and self.masked.finite_gradients().item():
            self.update(following)

    def update(self, moment: Moment) -> None:
        if self._variance:
            self._walk(moment)
        dying = {name: self._signs[name] * weight.detach() < 0 for name, weight in self.masked.parameters.items()}
        surviving = {name: mask & ~dying[name] for name, mask in self.masked.masks.items()}
        deaths = living(dying)
        # before the births: a weight that dies and is born at once starts from zero, too
        self.masked.set(surviving)
        born = self._births(surviving, deaths, moment)
        self.masked.set({name: mask | born[name] if name in born else mask for name, mask in surviving.items()})
        for name, newborn in born.items():
            self._signs[name].masked_fill_(dying[name], 0)
            self._draw_signs(name, newborn, moment)
        self.updates += 1

    def metrics(self) -> dict[str, float]:
        return super().metrics() | {"mask_updates": float(self.updates)}

    def state_dict(self) -> dict[str, Any]:
        signs = {name: sign.to(torch.int8) for name, sign in self._signs.items()}
        return super().state_dict() | {"updates": self.updates, "signs": signs, "variance": self._variance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.updates = state["updates"]
        for name, sign in self._signs.items():
            sign.copy_(state["signs"][name])
        self._variance = state["variance"]

    def _pull_to_zero(self) -> None:
        gradients = {name: weight.grad for name, weight in self.masked.parameters.items() if weight.grad is not None}
        signs = [self._signs[name] for name in gradients]
        torch._foreach_add_(list(gradients.values()), signs, alpha=self.config.l1)

    def _walk(self, moment: Moment) -> None:
        for name, weight in self.masked.parameters.items():
            noise = torch.randn(weight.shape, generator=generator(self.seed, moment.step, name, "noise"))
            weight.detach().add_(noise.to(weight.device) * self.masked.masks[name], alpha=self._variance**0.5)
        self._variance = 0.0

    def _births(self, surviving: Mapping[str, Tensor], deaths: Mapping[str, int], moment: Moment) -> dict[str, Tensor]:
        """Masks of the weights that are born, for layers where some died."""
        layers = {name: surviving[name] for name, count in deaths.items() if count}
        scores = random_scores(layers, self.seed, moment.step)
        return {
            name: largest(scores[name].masked_fill(mask, -1).flatten(), deaths[name]).view(mask.shape)
            for name, mask in layers.items()
        }

    def _draw_signs(self, name: str, newborn: Tensor, moment: Moment) -> None:
        count = int(newborn.count_nonzero())
        drawn = torch.randint(2, (count,), generator=generator(self.seed, moment.step, name, "signs")) * 2 - 1
        self._signs[name][newborn] = drawn.to(self._signs[name])
