"""RigL: drop the smallest weights, grow where the dense gradient is largest (arXiv 1911.11134)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor

from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.rewiring import RewiredBlock, Rewiring


class Config(RewiredBlock):
    average_batches: PositiveInt = 1
    """Batches whose mean gradient decides what grows: that of the update and those just before it, as far back as the
    update before."""

    @model_validator(mode="after")
    def _averages_between_updates(self) -> Self:
        if self.every is not None and self.average_batches > self.every:
            raise ValueError(f"average_batches: only {self.every} batches lie between two updates (every)")
        return self

    def averages_at(self, moment: Moment) -> bool:
        """Is this step's gradient one of those that decide at the next update?"""
        to_update = -moment.step % self.interval(moment.steps_per_epoch)
        return to_update < self.average_batches and 0 < moment.step + to_update < self.last_step(moment)

    def averaged(self, epoch: Moment) -> int:
        """The number of such steps in the epoch that begins at this moment."""
        interval, begin = self.interval(epoch.steps_per_epoch), epoch.step
        end = begin + epoch.steps_per_epoch
        # the last of an update's batches is its own: those of this epoch decide at updates in it, or just after it
        first = max(-(-begin // interval), 1) * interval
        updates = range(first, min(self.last_step(epoch), end + self.average_batches - 1), interval)
        return sum(len(range(max(begin, at - self.average_batches + 1), min(end, at + 1))) for at in updates)


class Method(Rewiring[Config]):
    """`nominal` is of ordinary steps: at those whose gradient decides about growth the backward pass is dense, which
    `dense_gradients` counts."""

    def __init__(self, config: Config, masked: MaskedParameters, epochs: int, seed: int = 0) -> None:
        super().__init__(config, masked, epochs, seed)
        self._sums: dict[str, Tensor] = {}
        """Of the dense gradients since the averaging began; empty outside."""

    def dense_gradients(self, epoch: int, steps_per_epoch: int) -> float:
        first = Moment(epoch, epoch * steps_per_epoch, self.epochs, steps_per_epoch)
        return self.config.averaged(first) / steps_per_epoch

    def growth_scores(self, moment: Moment) -> dict[str, Tensor]:
        return {name: gradient.abs() for name, gradient in self._sums.items()}

    def on_gradients(self, moment: Moment) -> bool:
        if self.config.averages_at(moment):
            self._add_gradients()
        steps = super().on_gradients(moment)
        if self.config.updates_at(moment):
            self._sums = {}
        return steps

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"gradients": {name: total.clone() for name, total in self._sums.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        weights = self.masked.parameters
        self._sums = {name: total.to(weights[name].device, copy=True) for name, total in state["gradients"].items()}

    def _add_gradients(self) -> None:
        if not self._sums:
            self._sums = {name: torch.zeros_like(weight) for name, weight in self.masked.parameters.items()}
        finite = self.masked.finite_gradients()
        for name, weight in self.masked.parameters.items():
            if weight.grad is not None:
                # a bad step counts for nothing, without the host having to know
                self._sums[name] += weight.grad.where(finite, 0)
