"""Filters that return from all zeros, and what keeps batch norm from blowing them up.

The output of a filter without a weight is constant. Batch norm divides by the root of its variance, which is then
epsilon alone, and multiplies its first gradient by up to 1/sqrt(epsilon), 316 at torch's default. One step makes it a
giant, and the next global ranking takes its weights for the most important ones (docs/results).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from acdc_cli.sparsity.masked import MaskedParameters

Revive = Literal["as_paper", "clipped", "held"]
"""`clipped`: a filter without a weight gets no longer gradient, when it is freed, than the mean of its layer's others.
`held`: it is not freed. `as_paper`: neither."""


class Returning:
    """The filters that had no weight when they were freed."""

    def __init__(self, masked: MaskedParameters) -> None:
        self._masked = masked
        self.filters: dict[str, Tensor] = {}
        """By layer, whether each had none (one bool an output channel); layers in which all had one are left out."""

    def mark(self) -> None:
        """Those that the masks leave no weight now."""
        empty = {name: ~mask.flatten(1).any(dim=1) for name, mask in self._masked.masks.items()}
        concerned = torch.stack([filters.any() for filters in empty.values()]).tolist()
        self.filters = {name: empty[name] for name, any_empty in zip(empty, concerned, strict=True) if any_empty}

    def forget(self) -> None:
        self.filters = {}

    def held(self) -> dict[str, Tensor]:
        """Masks that free all weights but theirs."""
        return {
            name: ~_like(self.filters[name], mask).expand_as(mask) if name in self.filters else torch.ones_like(mask)
            for name, mask in self._masked.masks.items()
        }

    def clip_gradients(self) -> None:
        """To the mean norm of the gradients of their layer's other filters; to zero where there is no other."""
        for name, filters in self.filters.items():
            gradient = self._masked.parameters[name].grad
            if gradient is None:
                continue
            norms = gradient.flatten(1).norm(dim=1)
            limit = norms.masked_fill(filters, 0).sum() / (~filters).sum().clamp_min(1)
            scale = torch.where(filters, (limit / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1), 1)
            gradient.mul_(_like(scale, gradient))

    def state_dict(self) -> dict[str, Tensor]:
        return {name: filters.clone() for name, filters in self.filters.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        weights = self._masked.parameters
        self.filters = {name: filters.to(weights[name].device, copy=True) for name, filters in state.items()}


def _like(filters: Tensor, weight: Tensor) -> Tensor:
    """With axes of size 1 after the first."""
    return filters.view(-1, *[1] * (weight.ndim - 1))
