"""SynFlow: prune before the first step, without data, by the flow through the network (arXiv 2006.05467)."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Self

import torch
from pydantic import PositiveInt, model_validator

from acdc_cli.errors import RunError
from acdc_cli.recipe.blocks.sparsity import TargetBlock
from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.how_much import geometric
from acdc_cli.sparsity.sparsifier import EpochWork, Sparsifier
from acdc_cli.sparsity.when import in_turn
from acdc_cli.sparsity.where import warn_of_empty_layers


class Config(TargetBlock):
    at_once = {}
    rounds: PositiveInt = 100
    """Rounds of scoring and pruning before the first step; after k of n, (1 - target)^(k/n) of the weights stay."""

    @model_validator(mode="after")
    def _one_round_for_one_sparsity(self) -> Self:
        if self.n_of_m and self.rounds > 1:
            raise ValueError(f"pattern: {self.pattern} has a single sparsity; set rounds: 1, or use another pattern")
        return self


class Method(Sparsifier[Config]):
    """Scores s = |w dR/dw| (algorithm 1): R sums outputs for an input of ones; parameters and statistics absolute."""

    def plan(self) -> PhasePlan:
        return in_turn(("sparse", self.epochs))

    def cost(self, epoch: int, steps_per_epoch: int) -> EpochWork:
        return replace(super().cost(epoch, steps_per_epoch), probed_images=0 if epoch else self.config.rounds)

    def on_epoch_start(self, moment: Moment) -> None:
        if moment.step > 0:
            return
        model, rounds, masks = deepcopy(self.training.model).double().eval(), self.config.rounds, self.masked.masks
        torch._foreach_abs_(list(model.state_dict().values()))
        weights = {name: model.get_parameter(name) for name in masks}
        ones = next(model.parameters()).new_ones(1, *self.training.input_shape(moment.epoch))
        for done in range(1, rounds + 1):
            if not (flow := model(ones).sum()).isfinite():
                raise RunError("sparsity.method: the flow through a model this deep exceeds float64; use snip")
            scores = {
                name: (weights[name].detach() * gradient).masked_fill(~masks[name], -1)
                for name, gradient in zip(weights, torch.autograd.grad(flow, list(weights.values())), strict=True)
            }
            masks = self.selector.masks(scores, geometric(done, rounds, self.config.target))
            for name, weight in weights.items():
                weight.detach().mul_(masks[name])
        self.masked.set(masks)
        warn_of_empty_layers("SynFlow", masks)
