"""How samples with a corrupted label are classified: as what they show, or as what was said of them (P1, Figure 2b)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Memorisation:
    names = ("corrupted_true", "corrupted_given", "corrupted_neither")

    def __init__(self, true: Tensor, given: Tensor) -> None:
        """Of each sample the class it has and the one that the training is told; (count,) int64 on the device."""
        self._true, self._given = true, given

    def sums(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """labels: (batch,), the samples' numbers."""
        predicted = logits.argmax(dim=1)
        as_true, as_given = predicted == self._true[labels], predicted == self._given[labels]
        counted = as_true, as_given, ~(as_true | as_given)
        return {name: hits.sum(dtype=torch.float64) for name, hits in zip(self.names, counted, strict=True)}

    def metrics(self, sums: Mapping[str, float], samples: int) -> dict[str, float]:
        """Fractions of the samples. A sample whose drawn label is its true one counts as both."""
        return {name: value / samples for name, value in sums.items()}
