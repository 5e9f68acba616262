"""Untrained weights with zeros as training would leave them: an engine's speed depends on these alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from acdc_cli.sparsity.distributions import kept_count, proportional
from acdc_cli.sparsity.prunable import Layer, pruned
from acdc_cli.sparsity.where import largest

_EXPONENT = 0.7
"""Exponent of a layer's size to which its nonzero weights are proportional: global magnitude pruning of ResNet-50
leaves densities in proportion to n^-0.3."""


@torch.no_grad()
def prune(layers: Sequence[Layer], sparsity: float, zero_filters: float = 0.0) -> None:
    """Zeroes the smallest weights of each pruned layer, and whole filters of each convolution.

    sparsity: share of all these weights.  zero_filters: share of the filters of a convolution; those at the end.
    """
    weights = pruned(layers)
    for weight in weights.values():
        if weight.ndim == 4 and (filters := round(zero_filters * len(weight))):
            weight[-filters:] = 0
    sizes = {name: weight.numel() for name, weight in weights.items()}
    claims = {name: round(1000 * size**_EXPONENT) for name, size in sizes.items()}
    room = {name: int(weight.count_nonzero()) for name, weight in weights.items()}
    kept = proportional(claims, room, kept_count(sum(sizes.values()), sparsity))
    for name, weight in weights.items():
        weight.mul_(largest(weight.abs().flatten(), round(kept[name])).view_as(weight))


@torch.no_grad()
def refill(layers: Sequence[Layer], generator: torch.Generator) -> None:
    """Replaces every zero by a number as large as the others: a dense model of the same shapes."""
    for layer in layers:
        weight = layer.parameter
        zeros = weight == 0
        size = weight.square().sum().div(max(1, int((~zeros).sum()))).sqrt()
        weight[zeros] = size * torch.randn(int(zeros.sum()), generator=generator)


@torch.no_grad()
def settle(model: nn.Module, images: Tensor) -> None:
    """Gives batch norm the statistics of these images, so that numbers keep an ordinary size from layer to layer."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        # the plain average over all batches seen, here of one
        norm.momentum = None
    model.train()
    model(images)
    model.eval()
