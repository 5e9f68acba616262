"""What every loader gives: batches of one epoch, drawn from nothing but (seed, epoch, step)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Valid until the next batch is asked for: the storage may be reused."""

    images: Tensor
    """(batch, 3, height, width), uint8, channels_last, on the loader's device."""
    labels: Tensor
    """(batch,), int64, on the loader's device."""
    indices: Tensor
    """(batch,), int64, on the CPU: the samples' positions in the data set."""


class Loader(Protocol):
    """A split of a data set. Training loaders shuffle, augment and drop the last partial batch;
    validation loaders give every image once, in the set's order."""

    @property
    def steps(self) -> int:
        """Batches in an epoch."""

    @property
    def samples(self) -> int:
        """Images in the split."""

    def epoch(
        self, epoch: int, start_step: int = 0, resolution: int | None = None
    ) -> AbstractContextManager[Iterator[Batch]]:
        """The batches of an epoch from `start_step` on; leaving the context early leaks nothing.

        resolution: side of the crops in pixels; None keeps the loader's own.
        Raises DataError when an image cannot be decoded.
        """

    def warm_up(self) -> None:
        """Compile and allocate now what the first epoch would otherwise wait for."""

    def close(self) -> None: ...
