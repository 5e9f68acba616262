"""Mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899) of whole batches on their device, drawn from (seed, epoch,
step), as torchvision has them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acdc_cli.data.batches import Batch, Loader
from acdc_cli.data.finish import MIXING, draws
from acdc_cli.data.labels import Labels
from acdc_cli.recipe.blocks.images import AugmentationBlock


class MixingLoader:
    """`batches.Loader` whose images are mixed with their neighbours in the batch, and their labels likewise.

    All ranks draw the same for a step; each mixes its own part of the batch. The host waits for nothing.
    """

    def __init__(self, loader: Loader, wanted: AugmentationBlock, seed: int, labels: Labels) -> None:
        # imported here because it takes seconds
        from torchvision.transforms.v2 import CutMix, MixUp

        self._loader = loader
        self._seed = seed
        self._labels = labels
        self._ways = [
            (mix(alpha=alpha), alpha) for mix, alpha in ((MixUp, wanted.mixup), (CutMix, wanted.cutmix)) if alpha
        ]

    @property
    def kind(self) -> str:
        return self._loader.kind

    @property
    def steps(self) -> int:
        return self._loader.steps

    @property
    def samples(self) -> int:
        return self._loader.samples

    def prepare(self, epoch: int) -> None:
        self._loader.prepare(epoch)

    def warm_up(self) -> None:
        self._loader.warm_up()

    def close(self) -> None:
        self._loader.close()

    @contextmanager
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Iterator[Batch]]:
        with self._loader.epoch(epoch, start_step) as batches:
            yield (self._mixed(batch, epoch, step) for step, batch in enumerate(batches, start_step))

    def _mixed(self, batch: Batch, epoch: int, step: int) -> Batch:
        drawn = draws(self._seed, epoch, step, MIXING)
        mix, alpha = self._ways[drawn.integers(len(self._ways))]
        share = drawn.beta(alpha, alpha)
        # float32 for cutmix, too: else the compiled model would have two versions
        images, labels = batch.inputs.float(), as_shares(batch.targets, self._labels)
        # its `forward` would draw from torch's global generator
        with_box = _pasted(share, drawn, *images.shape[2:])
        values: dict[str, Any] = {"labels": labels, "batch_size": len(labels), "lam": share, **with_box}
        return Batch(mix.transform(images, values), mix.transform(labels, values), batch.indices)


def as_shares(targets: Tensor, labels: Labels) -> Tensor:
    """(batch, outputs), float32: 1 for an image's class, or for each of its labels; 0 for the others."""
    outputs = torch.arange(len(labels.names), device=targets.device)
    here = targets[:, None] == outputs if labels.kind == "class" else targets[:, None] >> outputs & 1
    return here.float()


def _pasted(share: float, drawn: np.random.Generator, height: int, width: int) -> dict[str, Any]:
    """Cutmix's rectangle and the share of the image that it leaves: of area 1 - `share`, cut off at the border."""
    reach = 0.5 * math.sqrt(1 - share)
    row, column = int(drawn.integers(height)), int(drawn.integers(width))
    down, across = int(reach * height), int(reach * width)
    top, bottom = max(0, row - down), min(height, row + down)
    left, right = max(0, column - across), min(width, column + across)
    left_over = 1 - (bottom - top) * (right - left) / (height * width)
    return {"box": (left, top, right, bottom), "lam_adjusted": left_over}
