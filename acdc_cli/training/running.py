"""What an epoch's record is made of, added up step by step."""

from __future__ import annotations

import math
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
    """In nats, over the steps whose loss was finite; nan where there was none."""
    bad: int
    """Steps in a row, up to the last one, whose loss was NaN or infinite."""
    most_bad: int
    """The longest such row."""
    last_finite: float
    """The last finite loss; nan before the first."""


def over_ranks(everyone: Sequence[Losses]) -> Losses:
    """Of processes that have each seen an equal part of every batch."""
    return Losses(
        mean=fmean(losses.mean for losses in everyone),
        bad=max(losses.bad for losses in everyone),
        most_bad=max(losses.most_bad for losses in everyone),
        last_finite=fmean(losses.last_finite for losses in everyone),
    )


class Running:
    """The sums of the epoch that is under way.

    The losses of steps stay on the device, and no operation is spent on them, until somebody looks. The host then
    fetches all of them at once and adds them in float64, one by one: the sums do not depend on when it looks.
    """

    def __init__(self) -> None:
        self._unseen: list[Tensor] = []
        self._total, self._count, self._bad, self._most_bad = 0.0, 0, 0, 0
        self._last_finite = math.nan
        self.images = 0
        self.learning_rate = 0.0
        """Of the last step."""
        self.train_seconds = 0.0
        self.seconds = 0.0
        """Validation included."""

    def begin(self) -> None:
        """A new epoch. Rows of bad losses and the last finite one continue."""
        self._see()
        self._total, self._count, self._most_bad = 0.0, 0, self._bad
        self.images, self.learning_rate, self.train_seconds, self.seconds = 0, 0.0, 0.0, 0.0

    def add(self, loss: Tensor, images: int, learning_rate: float) -> None:
        """A step. loss: its mean over the batch, detached, on the device; the host does not wait for it."""
        self._unseen.append(loss)
        self.images += images
        self.learning_rate = learning_rate

    def look(self) -> Losses:
        """The host waits for the device."""
        self._see()
        mean = self._total / self._count if self._count else math.nan
        return Losses(mean, self._bad, self._most_bad, self._last_finite)

    def state_dict(self) -> dict[str, Any]:
        self._see()
        sums = (self._total, self._count, self._bad, self._most_bad, self._last_finite)
        return {"losses": torch.tensor(sums, dtype=torch.float64), **{key: getattr(self, key) for key in _NUMBERS}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._unseen.clear()
        self._total, count, bad, most_bad, self._last_finite = state["losses"].tolist()
        self._count, self._bad, self._most_bad = int(count), int(bad), int(most_bad)
        for key in _NUMBERS:
            setattr(self, key, state[key])

    def _see(self) -> None:
        if not self._unseen:
            return
        for loss in torch.stack(self._unseen).tolist():
            if math.isfinite(loss):
                self._total, self._count, self._bad, self._last_finite = self._total + loss, self._count + 1, 0, loss
            else:
                self._bad += 1
                self._most_bad = max(self._most_bad, self._bad)
        self._unseen.clear()


_NUMBERS = ("images", "learning_rate", "train_seconds", "seconds")
