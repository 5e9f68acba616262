"""Several labels per image, each there or not: binary cross entropy, accuracy of each label, uncertainty (P2 C.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from acdc_cli.quantities import Measures, Quantity
from acdc_cli.recipe.blocks.base import Misfit
from acdc_cli.recipe.blocks.data import DataBlock
from acdc_cli.recipe.blocks.images import ImagesBlock
from acdc_cli.recipe.blocks.task import TaskBlock

UNCERTAIN = math.log(9)
"""A logit nearer to zero than this is uncertain: 0.1 < sigmoid < 0.9 (P2 C.2)."""


class Task:
    """Losses and metrics are means over images and labels; targets are the bits of an int64, the first label lowest."""

    measures: ClassVar[Measures] = Measures(
        headline=Quantity("accuracy", "label accuracy", "acc.", "%"),
        confidence=Quantity("uncertainty", "uncertainty", "unc.", "%"),
    )
    inputs: ClassVar[str] = "images"
    targets: ClassVar[str] = "bits"
    losses: ClassVar[tuple[str, ...]] = ("binary",)

    def __init__(self, block: TaskBlock | None = None, names: Sequence[str] = ()) -> None:
        self.label_smoothing = block.label_smoothing if block else 0.0
        self._threshold = block.target_threshold if block else None
        self._labels = tuple(names)

    @property
    def names(self) -> tuple[str, ...]:
        return ("loss", "uncertainty", "accuracy", *(f"accuracy/{label}" for label in self._labels))

    @staticmethod
    def check(data: DataBlock) -> Iterator[Misfit]:
        assert isinstance(data, ImagesBlock)
        if data.corrupt_labels:
            yield Misfit("corrupt_labels", "replaces an image's one class, and a multilabel image has none; remove it")

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean binary cross entropy in nats; logits: (batch, labels), targets: (batch,) int64, or mixed: (batch,
        labels), the share of each.

        Label smoothing a makes the targets of 0 and 1 a/2 and 1 - a/2: that share is spread over both answers.
        """
        wanted = self._bits(logits, targets)
        wanted = wanted + self.label_smoothing * (0.5 - wanted) if self.label_smoothing else wanted
        if self._threshold is not None:
            wanted = (wanted > self._threshold).float()
        return F.binary_cross_entropy_with_logits(logits.float(), wanted)

    @torch.no_grad()
    def unsmoothed_loss(self, logits: Tensor, targets: Tensor) -> Tensor | None:
        if not self.label_smoothing and self._threshold is None:
            return None
        return F.binary_cross_entropy_with_logits(logits.float(), self._bits(logits, targets))

    def sums(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums over the batch of each image's means, in float64 on the logits' device; `right` is of each label."""
        wanted, labels = self._bits(logits, targets), logits.shape[1]
        losses = F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none")
        right = ((logits > 0) == (wanted > 0)).sum(dim=0, dtype=torch.float64)
        return {
            "loss": losses.sum(dtype=torch.float64) / labels,
            "uncertainty": self.undecided(logits).sum() / labels,
            "accuracy": right.sum() / labels,
        } | {f"accuracy/{label}": each for label, each in zip(self._labels, right, strict=bool(self._labels))}

    def metrics(self, sums: Mapping[str, float], samples: int) -> dict[str, float]:
        """Loss in nats, uncertainty and accuracies as fractions; `accuracy/LABEL` is a label's own."""
        return {name: value / samples for name, value in sums.items()}

    def log_probabilities(self, logits: Tensor) -> Tensor:
        return F.logsigmoid(torch.stack([-logits, logits], dim=2))

    def undecided(self, logits: Tensor) -> Tensor:
        # a threshold in the lower precision of the logits would be another one
        return (logits.double().abs() < UNCERTAIN).double()

    def answers(self, logits: Tensor) -> Tensor:
        return (logits > 0).long()

    def truth(self, targets: Tensor, outputs: int) -> Tensor:
        return targets[:, None] >> torch.arange(outputs, device=targets.device) & 1

    def asked(self, targets: Tensor) -> Tensor | None:
        return None

    def decisions(self, outputs: int) -> tuple[str, ...]:
        return self._labels or tuple(map(str, range(outputs)))

    def options(self, outputs: int) -> tuple[str, ...]:
        return "no", "yes"

    def _bits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(batch, labels), float32: 0 or 1; mixed targets are what they are."""
        return targets if targets.is_floating_point() else self.truth(targets, logits.shape[1]).float()
