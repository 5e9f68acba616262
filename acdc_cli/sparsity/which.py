"""Which weights stay: those with the largest scores, given by layer and in the shapes of the weights.

Magnitudes are `MaskedParameters.magnitudes`, second-order scores `fisher.Fisher.scores`; the others are here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from acdc_cli.sparsity.masked import MaskedParameters


class GradientSums:
    """Gradients of all weights, masked or not, summed over steps; a step with a NaN or infinite one adds nothing."""

    def __init__(self, masked: MaskedParameters) -> None:
        self._masked = masked
        self.sums: dict[str, Tensor] = {}
        """Empty before the first step and after `clear`."""

    def add(self) -> None:
        """Add the gradients of this step, before they are masked."""
        weights = self._masked.parameters
        if not self.sums:
            self.sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        finite = self._masked.finite_gradients()
        for name, weight in weights.items():
            if weight.grad is not None:
                # such a step adds zeros, without a wait for the device
                self.sums[name] += weight.grad.where(finite, 0)

    def clear(self) -> None:
        self.sums = {}

    def magnitudes(self) -> dict[str, Tensor]:
        return {name: total.abs() for name, total in self.sums.items()}

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.sums)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        weights = self._masked.parameters
        self.sums = {name: total.to(weights[name].device, copy=True) for name, total in state.items()}


def gradient_magnitudes(masked: MaskedParameters) -> dict[str, Tensor]:
    """|dL/dw| of this step, 0 for weights without a gradient."""
    return {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad.abs()
        for name, weight in masked.parameters.items()
    }


def random_scores(like: Mapping[str, Tensor], seed: int, step: int) -> dict[str, Tensor]:
    """Uniform scores in [0, 1), in the shapes of `like` and on its device.

    They depend on the seed, the step and the layer's name alone: they are the same on every rank, on every device and
    after every restart. torch's global generator is not used.
    """
    return {
        name: torch.rand(weight.shape, generator=generator(seed, step, name)).to(weight.device)
        for name, weight in like.items()
    }


def generator(*seeds: Any) -> torch.Generator:
    """A generator seeded with these numbers and strings, the same in every process."""
    digest = hashlib.blake2b(repr(seeds).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
