"""Which weights stay: exactly as many as asked for, ties broken by position (P1 3.2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from acdc_cli.sparsity.distributions import Distribution, kept_count, kept_per_layer


def keep_largest(scores: Mapping[str, Tensor], sparsity: float, distribution: Distribution) -> dict[str, Tensor]:
    """Boolean masks, in the shapes of `scores`, of the (1 - sparsity) n largest scores, counted by `kept_count`.

    Among equal scores the first stays: by layer in the order of `scores`, then row-major within the layer, whatever
    the memory layout. Never `score > threshold`, which drops or keeps whole ties.
    """
    if distribution == "uniform":
        counts = kept_per_layer({name: score.numel() for name, score in scores.items()}, sparsity)
        return {name: _largest(score.flatten(), counts[name]).view(score.shape) for name, score in scores.items()}
    flat = torch.cat([score.flatten() for score in scores.values()])
    mask = _largest(flat, kept_count(flat.numel(), sparsity))
    parts = torch.split_with_sizes(mask, [score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def _largest(scores: Tensor, count: int) -> Tensor:
    """Mask of the `count` largest of a vector of scores, the first among equals."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    # topk gives the right smallest score, but does not say which of several equal ones it took
    smallest = scores.topk(count, sorted=False).values.min()
    above, equal = scores > smallest, scores == smallest
    places = count - above.count_nonzero()
    return above | (equal & (equal.cumsum(0, dtype=torch.int32) <= places))
