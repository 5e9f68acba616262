"""Which input channels of each layer the image can reach, given only which weights are zero."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from acdc_cli.errors import ModelError
from acdc_cli.sparsity.prunable import Layer

_DRAWS = 3
_OF_INPUT = (nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)
_MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def dead_inputs(model: nn.Module, layers: Sequence[Layer], side: int) -> dict[str, Tensor]:
    """For each layer's name, a boolean for each input channel, on the CPU: True where no image of side x side pixels
    can change the channel.

    A dead channel is constant: 0, or what biases and batch norm's shifts make of 0, because every path from the image
    to it passes through a zero weight. This is tested on a copy of the model whose nonzero weights are redrawn, all
    positive, and whose batch norms keep their zero scales and subtract no mean. There nothing cancels and no rectifier
    closes, so the derivative of a channel in the direction of a brighter image (by forward-mode differentiation, in
    float64) is positive exactly where a path of nonzero weights leads to it. Residual connections, concatenation, gates
    and depthwise layers therefore need no special rules.

    Layers that normalise by their input (group norm, layer norm) and standardised weights can have a zero derivative by
    chance: a channel is dead only if the derivative is zero in each of several draws. Layers whose module is never
    called are left out: torch's attention applies its projections itself, and auxiliary classifiers do not run in eval
    mode.
    Raises ModelError if torch cannot differentiate the model in forward mode.
    """
    probe = copy.deepcopy(model).double().eval().requires_grad_(False)
    weights = {layer.parameter_name for layer in layers}
    modules = {layer.name: probe.get_submodule(layer.name) for layer in layers if _is_module(probe, layer.name)}
    device = next(probe.parameters()).device
    # on the CPU, so that every device gets the same draws
    generator = torch.Generator().manual_seed(0)
    reached = _watch(modules)
    for _ in range(_DRAWS):
        _draw(probe, weights, generator)
        image, direction = torch.rand(2, 1, 3, side, side, generator=generator, dtype=torch.float64).to(device)
        _differentiate(probe, image, direction)
        if all(bool(each.all()) for each in reached.values()):
            break
    return {name: ~each.cpu() for name, each in reached.items()}


def _is_module(model: nn.Module, name: str) -> bool:
    try:
        return isinstance(model.get_submodule(name), _MODULES)
    except AttributeError:
        return False


@torch.no_grad()
def _draw(model: nn.Module, weights: set[str], generator: torch.Generator) -> None:
    """Redraws every nonzero weight; zeros stay zero."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        _, _, own = name.rpartition(".")
        if own in ("running_mean", "running_var"):
            tensor.fill_(float(own == "running_var"))
        elif isinstance(tensor, nn.Parameter) or own in ("weight", "bias"):
            drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device) + 0.5
            drawn *= tensor != 0
            if name in weights:
                # each output is about half the mean of its inputs: residual sums grow slowly and nothing saturates
                drawn /= 2 * drawn.flatten(1).sum(1).clamp(min=0.5).view(-1, *[1] * (drawn.dim() - 1))
            # small, so that values stay below the flat regions of ReLU6 and sigmoids
            tensor.copy_(0.1 * drawn if own.endswith("bias") else drawn)
    for module in model.modules():
        if isinstance(module, _OF_INPUT) and module.weight is not None and module.bias is not None:
            # positive, so that no rectifier closes
            module.weight.mul_(0.1)
            module.bias.fill_(1)


def _differentiate(model: nn.Module, image: Tensor, direction: Tensor) -> None:
    # fused attention has no forward derivative
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            warnings.catch_warnings(),
            torch.no_grad(),
            forward_ad.dual_level(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            # torch's forward derivatives are written in TorchScript, which torch itself deprecates
            warnings.simplefilter("ignore", FutureWarning)
            model(forward_ad.make_dual(image, direction))  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ModelError(
            f"torch cannot follow the image through {type(model).__name__} ({error}); leave out the input channels "
            "with --set inputs=false"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _watch(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """For each module called from now on, the channels whose derivative was nonzero in any call."""
    reached: dict[str, Tensor] = {}

    def noting(name: str) -> Callable[[nn.Module, Any], None]:
        def note(module: nn.Module, inputs: Any) -> None:
            value, derivative = forward_ad.unpack_dual(inputs[0])  # type: ignore[no-untyped-call]
            channels = -1 if isinstance(module, nn.Linear) else 1
            moves = torch.zeros_like(value, dtype=torch.bool) if derivative is None else derivative != 0
            nonzero = moves.movedim(channels, 0).flatten(1).any(1)
            reached[name] = reached[name] | nonzero if name in reached else nonzero

        return note

    for name, module in modules.items():
        module.register_forward_pre_hook(noting(name))
    return reached
