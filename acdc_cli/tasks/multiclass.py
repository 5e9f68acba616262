"""One class per image: softmax cross entropy, top-1, top-5, entropy of the predictions (P2 eq. 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from acdc_cli.quantities import Measures, Quantity
from acdc_cli.recipe.blocks.base import Misfit
from acdc_cli.recipe.blocks.data import DataBlock
from acdc_cli.recipe.blocks.task import TaskBlock


class Task:
    measures: ClassVar[Measures] = Measures(
        headline=Quantity("top1", "top-1", "top-1", "%"),
        confidence=Quantity("entropy", "entropy", "entr.", "nats"),
        more=(Quantity("top5", "top-5", "top-5", "%"),),
    )
    inputs: ClassVar[str] = "images"
    targets: ClassVar[str] = "class"
    losses: ClassVar[tuple[str, ...]] = ("softmax", "binary")
    names = ("loss", "entropy", "top1", "top5")

    def __init__(self, block: TaskBlock | None = None, names: Sequence[str] = ()) -> None:
        self.label_smoothing = block.label_smoothing if block else 0.0
        self._is_binary = block is not None and block.loss == "binary"
        self._threshold = block.target_threshold if block else None
        self._classes = tuple(names)

    @staticmethod
    def check(data: DataBlock) -> Iterator[Misfit]:
        yield from ()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean smoothed cross entropy in nats; logits: (batch, classes), targets: (batch,) int64, or mixed: (batch,
        classes), the share of each class.

        A binary loss is also a mean over classes, on the smoothed targets, which are then rounded at the threshold.
        """
        if not self._is_binary:
            return F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)
        classes = logits.shape[1]
        wanted = (
            targets if targets.ndim == 2 else (targets[:, None] == torch.arange(classes, device=targets.device)).float()
        )
        wanted = wanted + self.label_smoothing * (1 / classes - wanted) if self.label_smoothing else wanted
        if self._threshold is not None:
            wanted = (wanted > self._threshold).float()
        return F.binary_cross_entropy_with_logits(logits.float(), wanted)

    @torch.no_grad()
    def unsmoothed_loss(self, logits: Tensor, targets: Tensor) -> Tensor | None:
        """Mean softmax cross entropy in nats (P2 C.1), also of mixed targets; None if the loss is just that."""
        return F.cross_entropy(logits.float(), targets) if self.label_smoothing or self._is_binary else None

    def sums(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums over the batch, as float64 scalars on the logits' device, so that batches add up exactly."""
        log_probabilities = F.log_softmax(logits.float(), dim=1)
        top = _largest(logits) == targets[:, None]
        return {
            "loss": _sum(-log_probabilities.gather(1, targets[:, None])),
            "entropy": _sum(-log_probabilities.exp() * log_probabilities),
            "top1": _sum(top[:, 0]),
            "top5": _sum(top),
        }

    def metrics(self, sums: Mapping[str, float], samples: int) -> dict[str, float]:
        """Means over `samples` images: loss and entropy in nats, top1 and top5 as fractions."""
        return {name: value / samples for name, value in sums.items()}

    def log_probabilities(self, logits: Tensor) -> Tensor:
        return F.log_softmax(logits, dim=1)[:, None]

    def undecided(self, logits: Tensor) -> Tensor:
        log_probabilities = F.log_softmax(logits.float(), dim=1)
        return (-log_probabilities.exp() * log_probabilities).sum(dim=1, keepdim=True)

    def answers(self, logits: Tensor) -> Tensor:
        return _largest(logits)[:, :1]

    def truth(self, targets: Tensor, outputs: int) -> Tensor:
        return targets[:, None]

    def asked(self, targets: Tensor) -> Tensor | None:
        return None

    def decisions(self, outputs: int) -> tuple[str, ...]:
        return ("",)

    def options(self, outputs: int) -> tuple[str, ...]:
        return self._classes or tuple(map(str, range(outputs)))


def _largest(logits: Tensor) -> Tensor:
    """(batch, at most 5): the classes with the largest logits, in the order that decides ties."""
    return logits.topk(min(5, logits.shape[1]), dim=1).indices


def _sum(values: Tensor) -> Tensor:
    return values.sum(dtype=torch.float64)
