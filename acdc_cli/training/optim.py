"""Optimisers from a recipe, with weight decay by the type of the module that owns a parameter."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import SGD, AdamW, Optimizer

from acdc_cli.recipe.schema import AdamWBlock, SGDBlock

_DECAYED = (_ConvNd, nn.Linear, nn.MultiheadAttention)


def build_optimizer(model: nn.Module, block: SGDBlock | AdamWBlock) -> Optimizer:
    """Fused, so that a step is one kernel on the device and can be skipped there."""
    groups = parameter_groups(model, block.weight_decay, block.decay_norm_and_bias)
    if isinstance(block, SGDBlock):
        optimizer = SGD(groups, lr=block.lr, momentum=block.momentum, nesterov=block.nesterov, fused=True)
        if block.momentum:
            _start_momentum(optimizer)
        return optimizer
    return AdamW(groups, lr=block.lr, betas=block.betas, eps=block.eps, fused=True)


def parameter_groups(model: nn.Module, weight_decay: float, decay_norm_and_bias: bool) -> list[dict[str, object]]:
    """Two groups: the weights of convolutions, linear layers and attention decay; the rest only if asked."""
    decayed: dict[int, nn.Parameter] = {}
    rest: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in decayed:
                continue
            if isinstance(module, _DECAYED) and parameter.ndim > 1:
                decayed[id(parameter)] = parameter
                rest.pop(id(parameter), None)
            else:
                rest[id(parameter)] = parameter
    return [
        {"params": list(decayed.values()), "weight_decay": weight_decay},
        {"params": list(rest.values()), "weight_decay": weight_decay if decay_norm_and_bias else 0.0},
    ]


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def clip_gradients(model: nn.Module, norm: float) -> Tensor:
    return nn.utils.clip_grad_norm_(model.parameters(), norm, foreach=True)


def _start_momentum(optimizer: SGD) -> None:
    # the fused kernel leaves the buffers of a skipped first step uninitialised; zeros give the same first step
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
