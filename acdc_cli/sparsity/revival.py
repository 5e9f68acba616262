"""Filters that return from all zeros, and what keeps batch norm from blowing them up.

The output of a filter without a weight is constant. Batch norm divides by the root of its variance, which is then
epsilon alone, and multiplies its first gradients, and those of the filters that read it, by up to 1/sqrt(epsilon), 316
at torch's default. They become giants, and the next global ranking takes their weights for the most important ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from acdc_cli.sparsity.masked import MaskedParameters

Revive = Literal["as_paper", "clipped"]
CLIP = 2.0
"""Longest gradient of a filter, in medians of its layer; 1 and 2 were equally good (docs/results)."""


def has_empty_filter(masks: Mapping[str, Tensor]) -> bool:
    """Do the masks leave any output channel without a weight? The host waits for the answer."""
    return bool(torch.stack([(~mask.flatten(1).any(dim=1)).any() for mask in masks.values()]).any())


def clip_filters(masked: MaskedParameters) -> None:
    """Clip the gradient of each filter to `CLIP` times the median norm of its layer's filters that have one."""
    for weight in masked.parameters.values():
        if weight.grad is not None:
            norms = weight.grad.flatten(1).norm(dim=1)
            median = norms.masked_fill(norms == 0, torch.nan).nanmedian().nan_to_num(0)
            scale = (CLIP * median / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1)
            weight.grad.mul_(scale.view(-1, *[1] * (weight.ndim - 1)))
