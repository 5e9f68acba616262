"""Sparsity patterns for hardware: groups of consecutive input channels, at one output and kernel position."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor


def fits(shape: torch.Size, channels: int) -> bool:
    """Whether the input channels of a weight (of one group, if it is grouped) are a multiple of `channels`."""
    return channels == 1 or shape[1] % channels == 0


def n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """Mask of the n largest of every m consecutive input channels; of equal scores the first stay (P1 4, 2:4)."""
    members = [scores[:, member::m] for member in range(m)]
    ranks = [torch.zeros_like(member, dtype=torch.int16) for member in members]
    # pair by pair: for the small m in use, many times faster than sorting millions of short rows
    for first, second in combinations(range(m), 2):
        leads = members[first] >= members[second]
        ranks[second] += leads
        ranks[first] += ~leads
    return (torch.stack(ranks, dim=2) < n).flatten(1, 2)


def block_means(scores: Tensor, channels: int) -> Tensor:
    """Mean score of every block of consecutive input channels: (out, in / channels, …)."""
    if channels == 1:
        return scores
    # added in order: how `mean` adds, and so what ties, depends on the memory layout
    total = scores[:, ::channels]
    for member in range(1, channels):
        total = total + scores[:, member::channels]
    return total / channels


def whole_blocks(mask: Tensor, channels: int) -> Tensor:
    """Expand a mask of blocks to a mask of weights."""
    return mask if channels == 1 else mask.repeat_interleave(channels, dim=1)
