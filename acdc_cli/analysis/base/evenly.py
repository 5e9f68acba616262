"""Cuts a loader's images into batches of equal size (within one image), whatever the loader's own batch size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from acdc_cli.data.batches import Batch, Loader


@dataclass(frozen=True)
class Evenly:
    """Avoids a last batch of one image, which has no batch statistics."""

    loader: Loader
    largest: int
    """Largest number of images in a batch."""

    @property
    def samples(self) -> int:
        return self.loader.samples

    @property
    def steps(self) -> int:
        return -(-self.samples // self.largest)

    @property
    def sizes(self) -> list[int]:
        edges = [self.samples * step // self.steps for step in range(self.steps + 1)]
        return [end - start for start, end in pairwise(edges)]

    @contextmanager
    def batches(self) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """(images, labels), each image once, in the loader's order."""
        with self.loader.epoch(0) as drawn:
            yield self._cut(drawn)

    def _cut(self, drawn: Iterator[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        images: list[Tensor] = []
        labels: list[Tensor] = []
        for size in self.sizes:
            while sum(map(len, labels)) < size:
                batch = next(drawn)
                # copies, because the loader may write the next batch over this one
                images.append(batch.inputs.clone())
                labels.append(batch.targets.clone())
            all_images, all_labels = torch.cat(images), torch.cat(labels)
            yield all_images[:size], all_labels[:size]
            images, labels = [all_images[size:]], [all_labels[size:]]
