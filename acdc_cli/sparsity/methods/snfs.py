"""Sparse momentum: smoothed gradients decide which weights grow, in which layers (SNFS, arXiv 1907.04840)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from pydantic import model_validator
from torch import Tensor

from acdc_cli.recipe.blocks.base import Decay, Epochs, Share
from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.exchange import ExchangeKeys, dropped_by_layer, exchange, living, regrowth
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.random_start import RandomStartKeys, start_at_random
from acdc_cli.sparsity.sparsifier import EpochWork, Sparsifier
from acdc_cli.sparsity.when import in_turn
from acdc_cli.sparsity.where import Living


class Config(ExchangeKeys, RandomStartKeys):
    fraction: Share = 0.5
    """Share of a layer's living weights that is dropped at the start (the prune rate); it falls to 0 along half a
    cosine until `end`."""
    end: Epochs = "100%"
    """Epoch from which the masks stay fixed, as a number or a share of the run."""
    momentum: Decay = 0.9
    """Decay per step of the running mean of gradients by which weights grow. It is not the optimiser's momentum, which
    masked weights do not have."""

    @model_validator(mode="after")
    def _layers_are_free(self) -> Self:
        if self.layers:
            raise ValueError(
                "layers: snfs moves weights between layers, so no layer keeps its own sparsity; remove layers, name "
                "dense layers in keep_dense, or use rigl"
            )
        return self

    def gathers_at(self, moment: Moment) -> bool:
        """Whether a later update uses this step's gradient."""
        return moment.step < self.last_update(moment)


class Method(Sparsifier[Config]):
    """m smooths the gradients of all weights; weights grow where |m| is largest. Layer l drops d_l weights and grows
    g_l, in proportion to the mean |m| of its living weights, M_l, as far as it has room:

        m <- b m + (1 - b) dL/dw        g_l = M_l / ΣM · Σd

    `distribution` holds at the start; from the first update on, only the total is fixed.
    """

    def __init__(self, config: Config, masked: MaskedParameters, epochs: int, seed: int = 0) -> None:
        super().__init__(config, masked, epochs, seed)
        self.updates = 0
        self._momentum = {name: torch.zeros_like(weight) for name, weight in masked.parameters.items()}
        """m <- b m + (1 - b) g of every weight, masked or not; empty after the last update."""

    def plan(self) -> PhasePlan:
        return in_turn(("sparse", self.epochs))

    def cost(self, epoch: int, steps_per_epoch: int) -> EpochWork:
        """All steps before the last update need dense gradients."""
        moving = Living(super().cost(epoch, steps_per_epoch).forward.density, None)
        first = Moment(epoch, epoch * steps_per_epoch, self.epochs, steps_per_epoch)
        gathering = self.config.last_update(first) - first.step
        return EpochWork(moving, moving, dense_gradients=min(max(gathering / steps_per_epoch, 0.0), 1.0))

    def on_epoch_start(self, moment: Moment) -> None:
        super().on_epoch_start(moment)
        if moment.step == 0:
            start_at_random(self.masked, self.selector, self.config.target, self.seed)
        if self.config.updates_at(moment):
            self.update(moment)

    def on_gradients(self, moment: Moment) -> bool:
        if self.config.gathers_at(moment):
            self._gather()
        else:
            self._momentum = {}
        return super().on_gradients(moment)

    def after_step(self, moment: Moment) -> None:
        following = self.config.update_after(moment)
        # the one place where the host waits, and only at updates
        if following and self.masked.finite_gradients().item():
            self.update(following)

    def update(self, moment: Moment) -> None:
        masks, magnitudes = self.masked.masks, self.masked.magnitudes()
        counts = living(masks)
        means, sizes = (
            mean_magnitudes(self._momentum, masks, counts),
            {name: mask.numel() for name, mask in masks.items()},
        )
        dropped = dropped_by_layer(self.config.exchanged(moment), counts, sizes, means)
        kept = {name: counts[name] - dropped[name] for name in masks}
        room = {name: size - kept[name] for name, size in sizes.items()}
        grown = regrowth(dropped, means, room)
        scores = {name: momentum.abs() for name, momentum in self._momentum.items()}
        self.masked.set({name: exchange(magnitudes[name], scores[name], kept[name], grown[name]) for name in masks})
        self.updates += 1

    def metrics(self) -> dict[str, float]:
        return super().metrics() | {"mask_updates": float(self.updates)}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"updates": self.updates, "smoothed": dict(self._momentum)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.updates = state["updates"]
        weights = self.masked.parameters
        self._momentum = {name: torch.zeros_like(weights[name]).copy_(old) for name, old in state["smoothed"].items()}

    def _gather(self) -> None:
        gradients = {name: weight.grad for name, weight in self.masked.parameters.items() if weight.grad is not None}
        # Ascent with weight decay 1 is m + (1 - b) (g - m). As an optimiser's step it leaves out a bad gradient on the
        # device, which a lerp could not, and reads and writes memory no more often.
        torch._fused_sgd_(
            [self._momentum[name] for name in gradients],
            list(gradients.values()),
            [],
            lr=1 - self.config.momentum,
            weight_decay=1.0,
            maximize=True,
            momentum=0.0,
            dampening=0.0,
            nesterov=False,
            is_first_step=False,
            found_inf=(~self.masked.finite_gradients()).float(),
        )


def mean_magnitudes(
    momentum: Mapping[str, Tensor], masks: Mapping[str, Tensor], living: Mapping[str, int]
) -> dict[str, float]:
    """Mean |m| of each layer's living weights, 0 where none lives."""
    sums = [(momentum[name] * mask).abs().sum(dtype=torch.float64) for name, mask in masks.items()]
    totals: list[float] = torch.stack(sums).tolist()
    return {name: total / max(living[name], 1) for name, total in zip(masks, totals, strict=True)}
