"""How samples with a corrupted label are classified: as what they show, or as what was said of them (P1, Figure 2b)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Memorisation:
    names = ("corrupted_true", "corrupted_given")

    def __init__(self, true: Tensor, given: Tensor) -> None:
        """Of each sample the class it has and the one that the training is told; (count,) int64 on the device."""
        self._classes = dict(zip(self.names, (true, given), strict=True))

    def sums(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """labels: (batch,), the samples' numbers."""
        predicted = logits.argmax(dim=1)
        return {
            name: (predicted == classes[labels]).sum(dtype=torch.float64) for name, classes in self._classes.items()
        }

    def metrics(self, sums: Mapping[str, float], samples: int) -> dict[str, float]:
        """Fractions of the samples; what is missing to 1 is classified as neither."""
        return {name: value / samples for name, value in sums.items()}
