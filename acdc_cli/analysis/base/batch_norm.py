"""Replacing batch norm's running statistics: by those of each batch, or by new estimates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def tracking(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms with running statistics, timm's included."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms normalise by their batch and leave their running statistics unchanged; all other modules are in eval
    mode."""
    norms = tracking(model)
    model.eval()
    try:
        for norm in norms:
            norm.train()
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.eval()
            norm.track_running_stats = True


@torch.no_grad()
def re_estimate(model: nn.Module, forward: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> None:
    """Sets the running statistics to the mean of the batches' statistics, weighted by batch size.

    Like torch's `update_bn`, except that all other modules (dropout, for one) are in eval mode and the host never
    waits. batches: images, at least two in each.
    """
    norms = tracking(model)
    momenta = [norm.momentum for norm in norms]
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        seen = 0
        for images in batches:
            seen += len(images)
            for norm in norms:
                norm.momentum = len(images) / seen
            forward(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
