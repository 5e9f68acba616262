"""BlurPool: a fixed blur before strided convolutions, so that subsampling does not alias (arXiv 1904.11486; P2 A)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acdc_cli.errors import ModelError

_MIN_IN_CHANNELS = 16


def apply_blurpool(model: nn.Module) -> list[str]:
    """Blur the input of every convolution with stride > 1 and at least 16 input channels; returns their names.

    The rule, the 3x3 binomial filter, its stride of 1 and its zero padding are those of FFCV's ImageNet recipe
    (`BlurPoolConv2d` in ffcv-imagenet's train_imagenet.py), which P2 A takes over. The convolutions stay the same
    modules under the same names and the filter is no part of the state dict: checkpoints with and without
    BlurPool interchange.
    Raises ModelError if the model has no such convolution.
    """
    strided = {name: module for name, module in model.named_modules() if _aliases(module)}
    if not strided:
        raise ModelError(
            f"model.blurpool changes nothing: {type(model).__name__} has no convolution with stride > 1 and at least "
            f"{_MIN_IN_CHANNELS} input channels; set blurpool: false"
        )
    for conv in strided.values():
        conv.register_buffer("blur_filter", _binomial_filter(conv.weight, conv.in_channels), persistent=False)
        # a hook, so that subclasses of Conv2d (timm has several) keep their own forward
        conv.register_forward_pre_hook(_blur)
    return list(strided)


def _aliases(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and max(module.stride) > 1 and module.in_channels >= _MIN_IN_CHANNELS


def _binomial_filter(like: Tensor, channels: int) -> Tensor:
    """[1, 2, 1] ⊗ [1, 2, 1] / 16 for every channel: (channels, 1, 3, 3); exact in bf16 and fp16 too."""
    # by Python, because torch imports its compiler to calculate on the meta device
    binomial = [[row * column / 16 for column in (1, 2, 1)] for row in (1, 2, 1)]
    return torch.tensor(binomial, device=like.device, dtype=like.dtype).repeat(channels, 1, 1, 1)


def _blur(conv: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    (x,) = inputs
    return F.conv2d(x, conv.blur_filter, padding=1, groups=x.shape[1])  # type: ignore[arg-type]
