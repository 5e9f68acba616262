"""Optimisers from a recipe, with weight decay depending on the type of the module that owns a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import SGD, AdamW, Optimizer

from acdc_cli.recipe.blocks.optim import AdamWBlock, LAMBBlock, LARSBlock, SGDBlock

_DECAYED = (_ConvNd, nn.Linear, nn.MultiheadAttention)


Group = dict[str, Any]
"""Parameters and their settings, as torch's optimisers take them."""


def build_optimizer(
    model: nn.Module, block: SGDBlock | AdamWBlock | LARSBlock | LAMBBlock, first: Sequence[Group] = ()
) -> Optimizer:
    """An optimiser that skips bad steps on the device: `GradScaler` tells it there whether the gradients are finite.

    first: groups set up by the method; their parameters belong to no other group.
    """
    groups = [*first, *parameter_groups(model, block.weight_decay, block.decay_norm_and_bias, first)]
    if isinstance(block, LARSBlock | LAMBBlock):
        return _by_layer(groups, block)
    if isinstance(block, SGDBlock):
        optimizer = SGD(groups, lr=block.lr, momentum=block.momentum, nesterov=block.nesterov, fused=True)
        if block.momentum:
            _start(optimizer, "momentum_buffer")
        return optimizer
    return AdamW(groups, lr=block.lr, betas=block.betas, eps=block.eps, fused=True)


def _by_layer(groups: Sequence[Group], block: LARSBlock | LAMBBlock) -> Optimizer:
    """LARS (arXiv 1708.03888) or LAMB (1904.00962), whose step is proportional to each layer's norm."""
    # imported here because it takes seconds
    from timm.optim import Lamb, Lars

    for group in groups:
        # timm's default does not adapt groups without decay, or whose decay a method handles
        group["always_adapt"] = all(parameter.ndim > 1 for parameter in group["params"])
    optimizer: Optimizer
    if isinstance(block, LARSBlock):
        momentum: dict[str, Any] = {"momentum": block.momentum, "nesterov": block.nesterov}
        optimizer = Lars(groups, lr=block.lr, trust_coeff=block.trust_coefficient, **momentum)
        state = ["momentum_buffer"] if block.momentum else []
    else:
        # no bias correction: timm counts steps on the host, which does not know which are skipped, and for a whole
        # group, part of which a method may restart. norm(weight) / norm(step) cancels the factor
        plain: dict[str, Any] = {"bias_correction": False, "max_grad_norm": None}
        optimizer = Lamb(groups, lr=block.lr, betas=block.betas, eps=block.eps, **plain)
        state = ["exp_avg", "exp_avg_sq"]
    _start(optimizer, *state)
    _skip_on_device(optimizer)
    return optimizer


def _skip_on_device(optimizer: Optimizer) -> None:
    """Undoes bad steps of an optimiser that cannot skip them itself; the host does not learn which steps are bad.

    Bits are multiplied by 0 and 1 as integers: exact for every number, and what infinite gradients leave in weights and
    state is discarded. During the step this takes as much memory as weights and state.
    """
    before: list[Tensor] = []

    def bits() -> list[Tensor]:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        states = [value for weight in weights for value in optimizer.state.get(weight, {}).values()]
        return [tensor.detach().view(torch.int32) for tensor in (*weights, *states)]

    def bad() -> Tensor | None:
        """Set by the scaler during the step."""
        overflow: Tensor | None = getattr(optimizer, "found_inf", None)
        return overflow

    def save(*_: Any) -> None:
        if (overflow := bad()) is not None:
            before[:] = torch._foreach_mul(bits(), (overflow != 0).int())

    def choose(*_: Any) -> None:
        if (overflow := bad()) is not None:
            torch._foreach_mul_(bits(), (overflow == 0).int())
            torch._foreach_add_(bits(), before)
            before.clear()

    optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]
    optimizer.register_step_pre_hook(save)
    optimizer.register_step_post_hook(choose)


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
    """Scales all gradients so that their global norm, including the method's own parameters, is at most this."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, norm, foreach=True)


def _start(optimizer: Optimizer, *state: str) -> None:
    # state created in a skipped first step stays uninitialised (SGD's fused kernel) or has no bits to restore; zeros
    # give the same first step
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {key: torch.zeros_like(parameter) for key in state}
