"""Filters that return from all zeros, and a clip that keeps batch norm from blowing up their gradients.

The output of a filter without weights is constant: its variance is zero. Batch norm, which divides by the root of
variance plus epsilon, then multiplies the filter's first gradients, and those of the filters that read it, by up to
1/sqrt(epsilon), 316 at torch's default. Their weights grow huge, and the next global ranking keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from acdc_cli.sparsity.masked import MaskedParameters

Revive = Literal["as_paper", "clipped"]
CLIP = 1.0
"""Largest gradient norm of a filter, in medians of its layer. 2 works at 98 %, but not at 99 % (docs/results)."""


def filters_with_weights(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whether each output channel has a weight, by layer; empty if all have. Waits for the device."""
    living = {name: mask.flatten(1).any(dim=1) for name, mask in masks.items()}
    return living if (~torch.cat(list(living.values()))).any() else {}


def clip_filters(masked: MaskedParameters, living: Mapping[str, Tensor]) -> None:
    """Clip each filter's gradient to `CLIP` times the median norm of those filters of its layer that have weights.

    living: from `filters_with_weights`; nothing is clipped if it is empty.
    """
    for name, has_weights in living.items():
        gradient = masked.parameters[name].grad
        if gradient is not None:
            norms = gradient.flatten(1).norm(dim=1)
            median = norms.masked_fill(~has_weights | (norms == 0), torch.nan).nanmedian().nan_to_num(0)
            scale = (CLIP * median / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1)
            gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))
