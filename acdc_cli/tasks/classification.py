"""Classification with one label per image: softmax cross entropy, top-1, top-5, entropy of the predictions (P2 eq.
4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


class Classification:
    names = ("loss", "entropy", "top1", "top5")

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean smoothed cross entropy in nats; logits: (batch, classes), labels: (batch,) int64."""
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)

    @torch.no_grad()
    def unsmoothed_loss(self, logits: Tensor, labels: Tensor) -> Tensor | None:
        """Mean cross entropy in nats (P2 C.1); None without label smoothing."""
        return F.cross_entropy(logits.float(), labels) if self.label_smoothing else None

    def sums(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Sums over the batch, as float64 scalars on the logits' device, so that batches add up exactly."""
        log_probabilities = F.log_softmax(logits.float(), dim=1)
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        return {
            "loss": _sum(-log_probabilities.gather(1, labels[:, None])),
            "entropy": _sum(-log_probabilities.exp() * log_probabilities),
            "top1": _sum(top[:, 0]),
            "top5": _sum(top),
        }

    def metrics(self, sums: Mapping[str, float], samples: int) -> dict[str, float]:
        """Means over `samples` images: loss and entropy in nats, top1 and top5 as fractions."""
        return {name: value / samples for name, value in sums.items()}


def _sum(values: Tensor) -> Tensor:
    return values.sum(dtype=torch.float64)
