"""A loader of images that lie in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from acdc_cli.data.batches import Batch


class InMemory:
    """`batches.Loader` of all images, one batch after another in their order, the last as large as it comes."""

    kind: Literal["ffcv", "torch"] = "torch"

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int) -> None:
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.samples, self.steps = len(labels), -(-len(labels) // batch_size)

    def order(self, epoch: int) -> Tensor:
        return torch.arange(len(self.labels))

    @contextmanager
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Iterator[Batch]]:
        parts = self.order(epoch).split(self.batch_size)[start_step : self.steps]
        yield (self.batch(part) for part in parts)

    def batch(self, part: Tensor) -> Batch:
        return Batch(self.images[part], self.labels[part], part)

    def prepare(self, epoch: int) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def close(self) -> None:
        pass
