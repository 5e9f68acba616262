"""What a model is trained for: the loss of a batch, and metrics that add up over batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Measure(Protocol):
    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics."""

    def sums(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The sums over a batch that `metrics` needs, on the device."""

    def metrics(self, sums: Mapping[str, float], samples: int) -> dict[str, float]:
        """Exact metrics of `samples` images from their sums."""


class Task(Measure, Protocol):
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The training loss of a batch, a scalar."""

    def unsmoothed_loss(self, logits: Tensor, labels: Tensor) -> Tensor | None:
        """The loss on the labels themselves, without a gradient; None if `loss` is on them, too."""
