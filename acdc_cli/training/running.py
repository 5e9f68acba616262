"""What an epoch's record is made of, added up step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Losses:
    """The training losses of an epoch so far, as the host sees them."""

    mean: float
    """In nats, over the steps whose loss was a number; nan where there was none."""
    bad: int
    """Steps in a row, up to the last one, whose loss was no number."""
    most_bad: int
    """The longest such row."""
    last_finite: float
    """The last loss that was a number; nan before the first."""


def over_ranks(everyone: Sequence[Losses]) -> Losses:
    """Of processes that have each seen an equal part of every batch."""
    return Losses(
        mean=fmean(losses.mean for losses in everyone),
        bad=max(losses.bad for losses in everyone),
        most_bad=max(losses.most_bad for losses in everyone),
        last_finite=fmean(losses.last_finite for losses in everyone),
    )


class Running:
    """The sums of the epoch that is under way. The losses stay on the device until somebody looks."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        zero = torch.zeros((), dtype=torch.float64, device=device)
        self._total, self._count, self._bad, self._most_bad = zero, zero, zero, zero
        self._last_finite = torch.full_like(zero, float("nan"))
        self.images = 0
        self.learning_rate = 0.0
        """Of the last step."""
        self.train_seconds = 0.0
        self.seconds = 0.0
        """Validation included."""

    def begin(self) -> None:
        """A new epoch. Rows of bad losses and the last finite one go on."""
        self._total = self._count = torch.zeros_like(self._total)
        self._most_bad = self._bad
        self.images, self.learning_rate, self.train_seconds, self.seconds = 0, 0.0, 0.0, 0.0

    def add(self, loss: Tensor, images: int, learning_rate: float) -> None:
        """A step. loss: its mean over the batch, on the device; the host does not wait for it."""
        finite = loss.isfinite()
        self._total = self._total + torch.where(finite, loss, 0)
        self._count = self._count + finite
        self._bad = torch.where(finite, 0, self._bad + 1)
        self._most_bad = torch.maximum(self._most_bad, self._bad)
        self._last_finite = torch.where(finite, loss.double(), self._last_finite)
        self.images += images
        self.learning_rate = learning_rate

    def look(self) -> Losses:
        """The host waits for the device."""
        total, count, bad, most_bad, last_finite = self._sums().tolist()
        return Losses(total / count if count else float("nan"), int(bad), int(most_bad), last_finite)

    def state_dict(self) -> dict[str, Any]:
        numbers = {key: getattr(self, key) for key in _NUMBERS}
        return {"losses": self._sums().cpu(), **numbers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        sums = state["losses"].to(self._device).unbind()
        self._total, self._count, self._bad, self._most_bad, self._last_finite = sums
        for key in _NUMBERS:
            setattr(self, key, state[key])

    def _sums(self) -> Tensor:
        return torch.stack([self._total, self._count, self._bad, self._most_bad, self._last_finite])


_NUMBERS = ("images", "learning_rate", "train_seconds", "seconds")
