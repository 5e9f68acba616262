"""A few random images, and a small network on its bench."""

from __future__ import annotations

import torch
from in_memory import InMemory
from torch import Tensor, nn

from acdc_cli.data.batches import Batch
from acdc_cli.jobs.setup import ReadyModel
from acdc_cli.recipe.blocks.task import TaskBlock
from acdc_cli.sparsity.prunable import layers
from acdc_cli.tasks.multiclass import Task as Classification
from acdc_cli.training.precision import Precision

CPU = torch.device("cpu")


class FixedImages(InMemory):
    """A loader that writes every batch over the one before, as it may."""

    def __init__(self, samples: int, batch_size: int, side: int = 5) -> None:
        generator = torch.Generator().manual_seed(samples)
        images = torch.randint(0, 256, (samples, 3, side, side), dtype=torch.uint8, generator=generator)
        super().__init__(images, torch.arange(samples) % 3, batch_size)
        self._images = torch.empty((batch_size, *images.shape[1:]), dtype=torch.uint8)
        self._labels = torch.empty(batch_size, dtype=torch.int64)

    def batch(self, part: Tensor) -> Batch:
        self._images[: len(part)], self._labels[: len(part)] = self.images[part], self.labels[part]
        return Batch(self._images[: len(part)], self._labels[: len(part)], part)


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
        task=_InFloat64(TaskBlock(label_smoothing=smoothing)),
        precision=Precision("fp32", CPU),
        device=CPU,
    )


class _InFloat64(Classification):
    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
