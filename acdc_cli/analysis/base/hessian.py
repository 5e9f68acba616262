"""Products of a loss's Hessian with vectors, over the nonzero weights (P2 M)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from acdc_cli.analysis.base.evenly import Evenly
from acdc_cli.sparsity.prunable import Layer


def hessian_times(
    vector: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    parameters: Sequence[Tensor],
    mask: Tensor,
    data: Evenly,
    advance: Callable[[], None] = lambda: None,
) -> Tensor:
    """m⊙∇⟨∇L, m⊙v⟩ (P2 M), where L is the mean loss over all images; needs the memory of one batch.

    vector, mask: (entries of all parameters,), float64 and bool.  loss: maps images and labels to the batch's mean
    loss.
    advance: called after every batch.
    """
    parts = torch.split(vector * mask, [each.numel() for each in parameters])
    direction = [part.view(each.shape).to(each.dtype) for part, each in zip(parts, parameters, strict=True)]
    total = torch.zeros_like(vector)
    with _faithful(), data.batches() as batches:
        for images, labels in batches:
            share = len(labels) / data.samples
            gradients = torch.autograd.grad(
                share * loss(images, labels), parameters, create_graph=True, materialize_grads=True
            )
            slope = torch.stack([(each * along).sum() for each, along in zip(gradients, direction, strict=True)]).sum()
            total += _flat(torch.autograd.grad(slope, parameters, materialize_grads=True))
            advance()
    return total * mask


def measured_entries(
    model: nn.Module, layers: Sequence[Layer], parameters: Literal["all", "weights"] = "all"
) -> Tensor:
    """The mask m over the entries of `model.parameters()`, (entries,), bool: False where a conv or linear weight is
    exactly zero; True for all other parameters, or False for them with `weights`."""
    weights = {id(layer.parameter) for layer in layers}
    others = parameters == "all"
    return _flat(
        [
            each != 0 if id(each) in weights else torch.full_like(each, others, dtype=torch.bool)
            for each in model.parameters()
        ]
    )


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([each.reshape(-1) for each in tensors])


@contextmanager
def _faithful() -> Iterator[None]:
    """float32 without TF32, deterministic, and with attention that can be differentiated twice."""
    with (
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        sdpa_kernel(SDPBackend.MATH),
    ):
        yield
