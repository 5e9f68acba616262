"""Statistics of a sequence of masks: overlap of consecutive masks, weights never pruned or regrown (P2 J).

Also the overlaps that follow from an update rule alone, GMP's or RigL's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from math import nan, prod

import torch
from torch import Tensor

from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.exchange import ExchangeKeys
from acdc_cli.sparsity.prunable import Layer, layer_name

Masks = Mapping[str, Tensor]
"""Booleans in the shapes of the weights, by parameter name: True where a weight is alive."""


@dataclass(frozen=True)
class Weights:
    """Counts of a layer's weights over a sequence of masks."""

    weights: int
    """All weights of the layer."""
    never_pruned: int
    """Alive in every mask."""
    always_pruned: int
    """Alive in no mask."""
    regrown: int
    """Pruned in one mask and alive in a later one."""


@dataclass(frozen=True)
class History:
    layers: dict[str, Weights]
    living: dict[str, list[int]]
    """Live weights of each layer, in each mask."""
    overlaps: dict[str, list[tuple[int, int]]]
    """For each layer and each two consecutive masks: weights alive in both, and in either; one pair fewer than
    masks."""

    @property
    def all_layers(self) -> Weights:
        return Weights(*map(sum, zip(*map(astuple, self.layers.values()), strict=True)))

    @property
    def densities(self) -> list[float]:
        """Density of each mask, over all layers."""
        total = self.all_layers.weights
        return [sum(counts) / total for counts in zip(*self.living.values(), strict=True)]

    @property
    def ious(self) -> list[float]:
        """IoU of consecutive masks, over all layers (P2 J)."""
        return [
            iou(sum(intersection for intersection, _ in counts), sum(union for _, union in counts))
            for counts in zip(*self.overlaps.values(), strict=True)
        ]


def history(masks: Iterable[Masks]) -> History:
    """The history of at least one mask, all over the same layers. Reads them once and holds five at a time."""
    living: dict[str, list[int]] = {}
    overlaps: dict[str, list[tuple[int, int]]] = {}
    before: dict[str, Tensor] = {}
    never: dict[str, Tensor] = {}
    ever: dict[str, Tensor] = {}
    regrown: dict[str, Tensor] = {}
    for each in masks:
        for name, mask in each.items():
            last = before.get(name)
            if last is None:
                never[name], ever[name], regrown[name] = mask.clone(), mask.clone(), torch.zeros_like(mask)
                living[name], overlaps[name] = [], []
            else:
                never[name] &= mask
                ever[name] |= mask
                regrown[name] |= mask & ~last
                overlaps[name].append(overlap(last, mask))
            living[name].append(int(mask.sum()))
            before[name] = mask
    return History(
        layers={
            layer_name(name): Weights(
                mask.numel(), int(never[name].sum()), int((~ever[name]).sum()), int(regrown[name].sum())
            )
            for name, mask in before.items()
        },
        living={layer_name(name): counts for name, counts in living.items()},
        overlaps={layer_name(name): counts for name, counts in overlaps.items()},
    )


def overlap(first: Tensor, second: Tensor) -> tuple[int, int]:
    """|A∧B| and |A∨B| of two boolean masks."""
    return int((first & second).sum()), int((first | second).sum())


def iou(intersection: int, union: int) -> float:
    """|A∧B| / |A∨B| (P2 J); NaN if no weight is alive in either."""
    return intersection / union if union else nan


def nonzero(layers: Sequence[Layer]) -> dict[str, Tensor]:
    """The masks implied by a model's prunable weights, on the CPU: True where a weight is not zero."""
    return {layer.parameter_name: (layer.parameter.detach() != 0).cpu() for layer in layers if layer.kept_dense is None}


def nested(densities: Sequence[float]) -> list[float]:
    """IoU of consecutive masks of these densities if one contains the other; (1 - s2) / (1 - s1) if weights are only
    pruned. NaN if both are empty."""
    return [min(pair) / max(pair) if max(pair) else nan for pair in pairwise(densities)]


def exchanged(fractions: Iterable[float]) -> float:
    """IoU of the masks before and after updates that drop these fractions of the live weights and grow as many.

    After one update, (1 - α) n of n weights are alive in both masks and (1 + α) n in either: (1 - α) / (1 + α). After
    several: p / (2 - p) with p = Π (1 - α), under two assumptions: each update drops every live weight with the same
    probability, so that p n are alive in both masks, and no dropped weight returns by the second mask. Real runs
    overlap more: dropped weights return, and newly grown weights, still small, are dropped first.
    """
    stay = prod(1 - fraction for fraction in fractions)
    return stay / (2 - stay)


def returned(fractions: Iterable[float], density: float) -> float:
    """Expected share of a layer's live weights that are alive after updates that regrow at random.

    density: live share of the layer's weights, in (0, 1]. An update drops each live weight with the same probability
    α and grows as many at random among all weights then masked, those just dropped included. Of n = density·N live
    weights let a share x be of the first mask. The drop leaves (1 - α) x n of these alive and n - (1 - α) x n masked,
    among N - (1 - α) n masked weights of which α n grow: x ← y + α (1 - y) / (1/density - (1 - α)), y = (1 - α) x.
    The IoU is x / (2 - x). For density → 0 nothing returns: x = Π (1 - α), as in `exchanged`.
    """
    share = 1.0
    for fraction in fractions:
        stay = (1 - fraction) * share
        share = stay + (fraction * (1 - stay) / (1 / density - (1 - fraction)) if fraction else 0)
    return share


def updates(config: ExchangeKeys, after: int, until: int, epochs: int, steps_per_epoch: int) -> list[float]:
    """Fractions of the live weights that a run of RigL exchanges between the end of epoch `after` and the end of
    `until`."""
    steps = range((after + 1) * steps_per_epoch, (until + 1) * steps_per_epoch)
    moments = [Moment(step // steps_per_epoch, step, epochs, steps_per_epoch) for step in steps]
    return [config.exchanged(moment) for moment in moments if config.updates_at(moment)]
