"""How samples with a corrupted label are classified: as the true class or as the wrong label (P1, Figure 2b)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Memorisation:
    names = ("corrupted_true", "corrupted_given", "corrupted_neither")

    def __init__(self, true: Tensor, given: Tensor) -> None:
        """true, given: each sample's true class and the label used in training; (count,) int64 on the device."""
        self._true, self._given = true, given

    def sums(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """targets: (batch,), the indices of the samples."""
        predicted = logits.argmax(dim=1)
        as_true, as_given = predicted == self._true[targets], predicted == self._given[targets]
        counted = as_true, as_given, ~(as_true | as_given)
        return {name: hits.sum(dtype=torch.float64) for name, hits in zip(self.names, counted, strict=True)}

    def metrics(self, sums: Mapping[str, float], samples: int) -> dict[str, float]:
        """Fractions of the samples. A sample whose drawn label equals the true one counts as both."""
        return {name: value / samples for name, value in sums.items()}
