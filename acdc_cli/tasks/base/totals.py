"""The values of `Measure.sums` over many batches: scalars are added, vectors concatenated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def combined(totals: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """totals: of the batches so far; empty before the first."""
    together = dict(totals)
    for name, value in sums.items():
        if name in together:
            before = together[name].to(value.device)
            value = torch.cat([before, value]) if value.ndim else before + value
        together[name] = value
    return together


def fetched(totals: Mapping[str, Tensor]) -> dict[str, Any]:
    """Floats and lists of floats, with one fetch from the device."""
    if not totals:
        return {}
    flat = torch.cat([value.double().flatten() for value in totals.values()]).tolist()
    values: dict[str, Any] = {}
    for name, total in totals.items():
        own, flat = flat[: total.numel()], flat[total.numel() :]
        values[name] = own if total.ndim else own[0]
    return values


def over_ranks(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """parts: of each rank what `fetched` gives; empty for a rank without a batch."""
    together: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            together[name] = together[name] + value if name in together else value
    return together
