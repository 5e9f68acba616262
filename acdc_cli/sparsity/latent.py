"""Dense weights behind a sparse model: the optimiser moves them, the forward pass does not use them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from acdc_cli.sparsity.masked import MaskedParameters


class LatentWeights:
    """The model holds the sparse weights; the latent weights replace them for the optimiser's step alone.

    So everything that reads the model between two steps (validation, a checkpoint, a count of zeros) sees the weights
    of the forward pass. Call `install` before the optimiser's step and `store` after it; then the method makes the
    weights sparse again.
    """

    def __init__(self, masked: MaskedParameters) -> None:
        self._parameters = {name: weight.detach() for name, weight in masked.parameters.items()}
        self.weights = {name: weight.clone() for name, weight in self._parameters.items()}

    def install(self) -> None:
        torch._foreach_copy_(list(self._parameters.values()), list(self.weights.values()))

    def store(self) -> None:
        torch._foreach_copy_(list(self.weights.values()), list(self._parameters.values()))

    def magnitudes(self) -> dict[str, Tensor]:
        return {name: weight.abs() for name, weight in self.weights.items()}

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.weights)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(state[name])
