"""Optimisers from a recipe, with weight decay by the type of the module that owns a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import SGD, AdamW, Optimizer

from acdc_cli.recipe.schema import AdamWBlock, SGDBlock

_DECAYED = (_ConvNd, nn.Linear, nn.MultiheadAttention)


Group = dict[str, Any]
"""Parameters and their settings, as torch's optimisers take them."""


def build_optimizer(model: nn.Module, block: SGDBlock | AdamWBlock, first: Sequence[Group] = ()) -> Optimizer:
    """Fused, so that a step is one kernel on the device and can be skipped there.

    first: groups that somebody else has set up; their parameters are in no other group.
    """
    groups = [*first, *parameter_groups(model, block.weight_decay, block.decay_norm_and_bias, first)]
    if isinstance(block, SGDBlock):
        optimizer = SGD(groups, lr=block.lr, momentum=block.momentum, nesterov=block.nesterov, fused=True)
        if block.momentum:
            _start_momentum(optimizer)
        return optimizer
    return AdamW(groups, lr=block.lr, betas=block.betas, eps=block.eps, fused=True)


def parameter_groups(
    model: nn.Module, weight_decay: float, decay_norm_and_bias: bool, taken: Sequence[Group] = ()
) -> list[Group]:
    """Two groups: the weights of convolutions, linear layers and attention decay; the rest only if asked."""
    elsewhere = {id(parameter) for group in taken for parameter in group["params"]}
    decayed: dict[int, nn.Parameter] = {}
    rest: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in elsewhere or id(parameter) in decayed:
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


def clip_gradients(optimizer: Optimizer, norm: float) -> Tensor:
    """Scale all gradients so that their global norm is at most this: a method's own parameters' with the model's."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, norm, foreach=True)


def _start_momentum(optimizer: SGD) -> None:
    # the fused kernel leaves the buffers of a skipped first step uninitialised; zeros give the same first step
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
