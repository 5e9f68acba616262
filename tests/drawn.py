"""The batches of an epoch as they were, since a loader reuses their memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from acdc_cli.data.batches import Loader


def drawn(loader: Loader, epoch: int = 2, start_step: int = 0) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(images, labels, indices) of each batch."""
    with loader.epoch(epoch, start_step) as batches:
        return [(batch.inputs.clone(), batch.targets.clone(), batch.indices.clone()) for batch in batches]


def same(some: Sequence[tuple[Tensor, ...]], others: Sequence[tuple[Tensor, ...]]) -> bool:
    """Whether they are the same batches, of which there must be some."""
    pairs = [pair for one, other in zip(some, others, strict=True) for pair in zip(one, other, strict=True)]
    return len(pairs) > 0 and all(torch.equal(one, other) for one, other in pairs)
