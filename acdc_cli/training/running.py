"""Sums over the steps of the current epoch: losses, images, seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from acdc_cli.errors import RunError
from acdc_cli.training.distributed import ALONE, Ranks


@dataclass(frozen=True)
class Losses:
    """The training losses of an epoch so far, as the host sees them."""

    mean: float
    """In nats, over the steps whose loss was finite; NaN if there was none."""
    unsmoothed: float
    """The same of the loss on the labels themselves (P2 C.1); the two are equal without label smoothing."""
    bad: int
    """Steps in a row, up to the last one, whose loss was NaN or infinite."""
    longest_bad: int
    """The longest such run of steps."""
    last_finite: float
    """The last finite loss; NaN before the first."""

    def check(self, patience: int, place: str) -> None:
        """Raises RunError if `patience` steps in a row had a bad loss.  place: in the run, for the message."""
        if self.longest_bad >= patience:
            raise RunError(
                f"the training loss was NaN or infinite for {self.longest_bad} steps in a row: {place}, last finite "
                f"loss {self.last_finite:.4g}. The last good checkpoint is kept; lower optim.lr, set optim.clip_norm, "
                "or use precision bf16 or fp32"
            )


def over_ranks(everyone: Sequence[Losses]) -> Losses:
    """Losses of whole batches, from those of processes that each saw an equal part of every batch."""
    return Losses(
        mean=fmean(losses.mean for losses in everyone),
        unsmoothed=fmean(losses.unsmoothed for losses in everyone),
        bad=max(losses.bad for losses in everyone),
        longest_bad=max(losses.longest_bad for losses in everyone),
        last_finite=fmean(losses.last_finite for losses in everyone),
    )


class Running:
    """The sums of the current epoch.

    The losses of steps stay on the device, and no operation is spent on them, until they are fetched. The host then
    fetches all of them at once and adds them in float64, one by one: the sums do not depend on when it does so.
    """

    def __init__(self) -> None:
        self._pending: list[Tensor] = []
        self._total, self._unsmoothed, self._count, self._bad, self._longest_bad = 0.0, 0.0, 0, 0, 0
        self._last_finite = math.nan
        self.images = 0
        self.learning_rate = 0.0
        """Learning rate of the last step."""
        self.train_seconds = 0.0
        self.seconds = 0.0
        """Validation included."""
        self._began = time.perf_counter()

    def begin(self) -> None:
        """A new epoch. A run of bad losses continues across epochs, and the last finite loss stays."""
        self._fetch_pending()
        self._total, self._unsmoothed, self._count, self._longest_bad = 0.0, 0.0, 0, self._bad
        self.images, self.learning_rate, self.train_seconds, self.seconds = 0, 0.0, 0.0, 0.0

    def add(self, losses: Tensor, images: int, learning_rate: float) -> None:
        """A step. losses: (2,), the loss and the unsmoothed one, means over the batch, detached, on the device; the
        host does not wait for them."""
        self._pending.append(losses)
        self.images += images
        self.learning_rate = learning_rate

    def start_clock(self) -> None:
        """The epoch begins or is resumed: `tick` counts its seconds from here."""
        self._began = time.perf_counter() - self.seconds

    def tick(self) -> None:
        self.seconds = time.perf_counter() - self._began

    def tick_step(self) -> None:
        """A step is over."""
        self.tick()
        self.train_seconds = self.seconds

    def fetch(self, ranks: Ranks = ALONE) -> Losses:
        """The epoch's losses so far, over all ranks; the host waits for the device."""
        self._fetch_pending()
        mean, unsmoothed = (
            total / self._count if self._count else math.nan for total in (self._total, self._unsmoothed)
        )
        own = mean, unsmoothed, self._bad, self._longest_bad, self._last_finite
        return over_ranks([Losses(*each) for each in ranks.gather(own)])

    def state_dict(self) -> dict[str, Any]:
        self._fetch_pending()
        sums = (self._total, self._unsmoothed, self._count, self._bad, self._longest_bad, self._last_finite)
        return {"losses": torch.tensor(sums, dtype=torch.float64), **{key: getattr(self, key) for key in _NUMBERS}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._pending.clear()
        self._total, self._unsmoothed, count, bad, longest_bad, self._last_finite = state["losses"].tolist()
        self._count, self._bad, self._longest_bad = int(count), int(bad), int(longest_bad)
        for key in _NUMBERS:
            setattr(self, key, state[key])

    def _fetch_pending(self) -> None:
        if not self._pending:
            return
        for loss, unsmoothed in torch.stack(self._pending).tolist():
            if math.isfinite(loss):
                self._total, self._unsmoothed = self._total + loss, self._unsmoothed + unsmoothed
                self._count, self._bad, self._last_finite = self._count + 1, 0, loss
            else:
                self._bad += 1
                self._longest_bad = max(self._longest_bad, self._bad)
        self._pending.clear()


_NUMBERS = ("images", "learning_rate", "train_seconds", "seconds")
