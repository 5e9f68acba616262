"""A few random images, and a small network on its bench."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from acdc_cli.data.batches import Batch
from acdc_cli.jobs.setup import ReadyModel
from acdc_cli.sparsity.prunable import layers
from acdc_cli.tasks.classification import Classification
from acdc_cli.training.precision import Precision

CPU = torch.device("cpu")


class FixedImages:
    """A loader that writes every batch over the one before, as it may."""

    kind: Literal["torch"] = "torch"

    def __init__(self, samples: int, batch_size: int, side: int = 5) -> None:
        generator = torch.Generator().manual_seed(samples)
        self.samples, self._batch_size = samples, batch_size
        self.images = torch.randint(0, 256, (samples, 3, side, side), dtype=torch.uint8, generator=generator)
        self.labels = torch.arange(samples) % 3

    @property
    def steps(self) -> int:
        return -(-self.samples // self._batch_size)

    @contextmanager
    def epoch(self, epoch: int, start_step: int = 0, resolution: int | None = None) -> Iterator[Iterator[Batch]]:
        yield self._drawn(start_step)

    def _drawn(self, start_step: int) -> Iterator[Batch]:
        images = torch.empty((self._batch_size, *self.images.shape[1:]), dtype=torch.uint8)
        labels = torch.empty(self._batch_size, dtype=torch.int64)
        for part in torch.arange(self.samples).split(self._batch_size)[start_step:]:
            images[: len(part)], labels[: len(part)] = self.images[part], self.labels[part]
            yield Batch(images[: len(part)], labels[: len(part)], part)

    def prepare(self, epoch: int, resolution: int | None = None) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def close(self) -> None:
        pass


def small_bench(seed: int = 0, smoothing: float = 0.0, norm: bool = True) -> ReadyModel:
    """A convolution, batch norm whose statistics are not the images', and a classifier of three; half of the weights of
    the convolution are zero."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4) if norm else nn.Identity(),
        nn.Tanh(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16, 3),
    ).double()
    with torch.no_grad():
        weight = model[0].weight
        weight *= torch.rand_like(weight) < 0.5
        if norm:
            model[1].running_mean.uniform_(-0.2, 0.2)
            model[1].running_var.uniform_(0.1, 0.5)
            model[1].weight.uniform_(0.5, 1.5)
    return ReadyModel(
        model=model,
        forward=lambda images: model(images.double() / 128 - 1),
        layers=layers(model, ()),
        task=_InFloat64(smoothing),
        precision=Precision("fp32", CPU),
        device=CPU,
    )


class _InFloat64(Classification):
    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
