"""Optimal brain compression: prune so that each layer's outputs change least (ExactOBS, arXiv 2208.11580)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from acdc_cli.errors import ModelError
from acdc_cli.recipe.blocks.base import Distribution
from acdc_cli.schedule.time import Moment, PhasePlan
from acdc_cli.sparsity.prunable import layer_name
from acdc_cli.sparsity.sparsifier import EpochWork, Sparsifier
from acdc_cli.sparsity.when import OnceBlock

_NUMBERS = 2**25
"""Most numbers in the inverses that are held at once: 256 MiB."""


class Config(OnceBlock):
    distribution: Distribution = "global"
    """`global`: one ranking by the relative error of a layer's outputs; `uniform` and `erk` as for other methods."""
    images: PositiveInt = 1024
    """Training images on which the layers' inputs are measured."""
    damping: PositiveFloat = 0.01
    """Added to the diagonal of a layer's Hessian, as a share of the diagonal's mean."""
    column_block: PositiveInt = 128
    """Consecutive weights of a filter that are ranked together; time grows with its square. The compensation always
    involves the whole filter."""


class Method(Sparsifier[Config]):
    """A layer computes W X for its inputs X, unfolded if it is a convolution, so the squared change of its outputs has
    the Hessian H = X Xᵀ for each row of W. Weights rank by the errors that ExactOBS makes when it removes them one by
    one, divided by the energy of the layer's outputs; then the weights that stay are the least-squares solution.
    """

    def plan(self) -> PhasePlan:
        return self.config.phases(self.epochs)

    def sparsity(self, moment: Moment) -> float:
        return 0.0 if self.phases.at(moment.epoch).kind == "dense" else self.config.target

    def cost(self, epoch: int, steps_per_epoch: int) -> EpochWork:
        prunes = epoch == self.config.epoch(self.epochs)
        # charged as gradients, of which a forward pass is a third: too much by less than a step of any training
        return replace(super().cost(epoch, steps_per_epoch), probed_images=self.config.images if prunes else 0)

    def on_epoch_start(self, moment: Moment) -> None:
        if moment.epoch != self.config.epoch(self.epochs):
            return
        hessians = self._hessians(moment)
        grouped = {name: _grouped(self._weight(name), len(hessian)) for name, hessian in hessians.items()}
        scores = {}
        for name, weight in grouped.items():
            energy = torch.einsum("gri,gij,grj->", weight, hessians[name], weight).clamp_min(1e-30)
            parts = zip(weight, hessians[name], strict=True)
            errors = torch.stack([removal_errors(*part, self.config.column_block) for part in parts])
            scores[name] = (errors / energy).view(self.masked.shapes[name]).masked_fill(~self.masked.masks[name], -1)
        masks = self.selector.masks(scores, self.config.target)
        for name, weight in grouped.items():
            kept = _grouped(masks[name], len(weight)).bool()
            rows = [reconstructed(*each) for each in zip(weight, kept, hessians[name], strict=True)]
            self._weight(name).copy_(torch.stack(rows).view(self.masked.shapes[name]))
        self.masked.set(masks)

    def _weight(self, name: str) -> Tensor:
        return self.masked.parameters[name].detach()

    def _hessians(self, moment: Moment) -> dict[str, Tensor]:
        """(groups, inputs, inputs) of each layer in float64, damped."""
        sums: dict[str, Tensor] = {}

        def add(name: str, module: nn.Module, inputs: Tensor) -> None:
            x = columns(module, inputs.detach())
            gram = torch.bmm(x, x.mT).double()
            sums[name] = sums[name] + gram if name in sums else gram

        with ExitStack() as stack:
            for name, module in self._modules().items():
                hook = module.register_forward_pre_hook(lambda module, given, name=name: add(name, module, given[0]))
                stack.callback(hook.remove)
            for _ in self.training.forward_passes(moment, self.config.images):
                pass
        return {name: damped(total, self.config.damping) for name, total in sums.items()}

    def _modules(self) -> Mapping[str, nn.Module]:
        """The layer of each weight. Raises ModelError for one whose inputs have no columns."""
        by_weight = {id(module.weight): module for module in self.training.model.modules() if hasattr(module, "weight")}
        modules = {name: by_weight.get(id(weight)) for name, weight in self.masked.parameters.items()}
        if other := [layer_name(name) for name, each in modules.items() if not isinstance(each, nn.Linear | nn.Conv2d)]:
            raise ModelError(
                f"sparsity.method: obc prunes linear layers and 2-D convolutions; name {', '.join(other[:3])} in "
                "sparsity.keep_dense, or use another method"
            )
        return {name: module for name, module in modules.items() if module is not None}


def _grouped(weight: Tensor, groups: int) -> Tensor:
    """(groups, rows, inputs) of a layer's weight, in float64."""
    return weight.double().reshape(groups, len(weight) // groups, -1)


def columns(module: nn.Module, inputs: Tensor) -> Tensor:
    """The X of a layer that computes W X: (groups, inputs of a filter, filters' places in all images)."""
    if isinstance(module, nn.Linear):
        return inputs.reshape(1, -1, inputs.shape[-1]).mT
    assert isinstance(module, nn.Conv2d)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(inputs, module._reversed_padding_repeated_twice, mode)
    unfolded = F.unfold(padded, module.kernel_size, module.dilation, stride=module.stride)
    return unfolded.transpose(0, 1).reshape(module.groups, unfolded.shape[1] // module.groups, -1)


def damped(gram: Tensor, damping: float) -> Tensor:
    """X Xᵀ with a share of its mean diagonal added to the diagonal; that of inputs that are all zero is the identity.

    gram: (groups, inputs, inputs).
    """
    mean = gram.diagonal(dim1=1, dim2=2).mean(dim=1)
    added = torch.where(mean > 0, damping * mean, 1.0)
    return gram + added[:, None, None] * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


def removal_errors(weight: Tensor, hessian: Tensor, block: int) -> Tensor:
    """The error w_q² / [H^-1]_qq with which ExactOBS removes each weight, smallest first, the others compensating.

    Within a row and block an error is at least those of the weights removed before, so that the largest errors are the
    weights that are removed last. weight: (rows, inputs).  hessian: (inputs, inputs).  Returns (rows, inputs).
    """
    errors = torch.empty_like(weight)
    for start in range(0, weight.shape[1], block):
        part = slice(start, start + block)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[part, part]))
        at_once = max(1, _NUMBERS // inverse.numel())
        for first in range(0, len(weight), at_once):
            rows = slice(first, first + at_once)
            errors[rows, part] = _removed_one_by_one(weight[rows, part].clone(), inverse)
    return errors


def _removed_one_by_one(weight: Tensor, inverse: Tensor) -> Tensor:
    """weight: (rows, inputs), overwritten.  inverse: H^-1, (inputs, inputs)."""
    inverse = inverse.repeat(len(weight), 1, 1)
    errors, largest = torch.full_like(weight, torch.inf), weight.new_zeros(len(weight))
    rows = torch.arange(len(weight), device=weight.device)
    left = torch.ones_like(weight, dtype=torch.bool)
    for _ in range(weight.shape[1]):
        diagonal = inverse.diagonal(dim1=1, dim2=2)
        error, q = (weight.square() / diagonal).masked_fill(~left, torch.inf).min(dim=1)
        largest = largest.maximum(error)
        errors[rows, q] = largest
        column = inverse[rows, q] / diagonal[rows, q, None].sqrt()
        weight -= column * (weight[rows, q] / diagonal[rows, q].sqrt())[:, None]
        inverse -= column[:, :, None] * column[:, None, :]
        left[rows, q] = False
    return errors


def reconstructed(weight: Tensor, kept: Tensor, hessian: Tensor) -> Tensor:
    """The weights on `kept` that minimise (v - w)ᵀ H (v - w) in each row: v = w_K + H_KK^-1 H_KP w_P.

    All are (rows, inputs) but the Hessian, (inputs, inputs).
    """
    best = torch.zeros_like(weight)
    for row, old, mask in zip(best, weight, kept, strict=True):
        if (stays := mask.nonzero().flatten()).numel():
            lost = hessian[stays] @ old.where(~mask, 0)
            factor = torch.linalg.cholesky(hessian[stays][:, stays])
            row[stays] = old[stays] + torch.cholesky_solve(lost[:, None], factor).flatten()
    return best
