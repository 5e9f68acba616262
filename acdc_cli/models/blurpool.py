"""BlurPool: a fixed blur before strided convolutions, so that subsampling does not alias (arXiv 1904.11486; P2 A)."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acdc_cli.errors import ModelError

_MIN_IN_CHANNELS = 16


def apply_blurpool(model: nn.Module, blur: Literal["convolution", "shifts"] = "convolution") -> list[str]:
    """Blur the input of every convolution with stride > 1 and at least 16 input channels; returns their names.

    The rule, the 3x3 binomial filter and its zero padding are those of FFCV's ImageNet recipe (`BlurPoolConv2d` in
    ffcv-imagenet's train_imagenet.py), which P2 A takes over. There the blur has stride 1. Before an unpadded 1x1
    convolution the blur takes over the convolution's stride instead, which is 1 from then on: the convolution reads
    the same values, and the others are never computed. The convolutions stay the same modules under the same names and
    the filter is no part of the state dict: checkpoints with and without BlurPool interchange.

    blur: `convolution` is a depthwise convolution. `shifts` adds shifted copies of the input in float32, which
    torch.compile fuses with the operations around them; not compiled it is slower. Both are the same function up to
    rounding.
    Raises ModelError if the model has no such convolution.
    """
    strided = {name: module for name, module in model.named_modules() if _aliases(module)}
    if not strided:
        raise ModelError(
            f"model.blurpool changes nothing: {type(model).__name__} has no convolution with stride > 1 and at least "
            f"{_MIN_IN_CHANNELS} input channels; set blurpool: false"
        )
    for conv in strided.values():
        stride = _take_stride(conv)
        if blur == "convolution":
            conv.register_buffer("blur_filter", _binomial_filter(conv.weight, conv.in_channels), persistent=False)
        # a hook, so that subclasses of Conv2d (timm has several) keep their own forward
        conv.register_forward_pre_hook(partial(_convolved if blur == "convolution" else _shifted, stride=stride))
    return list(strided)


def _aliases(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and max(module.stride) > 1 and module.in_channels >= _MIN_IN_CHANNELS


def _take_stride(conv: nn.Conv2d) -> tuple[int, int]:
    """The stride of the blur before `conv`. An unpadded 1x1 convolution reads every stride-th value and no other."""
    if conv.kernel_size != (1, 1) or conv.padding not in ((0, 0), "valid"):
        return (1, 1)
    rows, columns = conv.stride
    conv.stride = (1, 1)
    return rows, columns


def _binomial_filter(like: Tensor, channels: int) -> Tensor:
    """[1, 2, 1] ⊗ [1, 2, 1] / 16 for every channel: (channels, 1, 3, 3); exact in bf16 and fp16 too."""
    # by Python, because torch imports its compiler to calculate on the meta device
    binomial = [[row * column / 16 for column in (1, 2, 1)] for row in (1, 2, 1)]
    return torch.tensor(binomial, device=like.device, dtype=like.dtype).repeat(channels, 1, 1, 1)


def _convolved(conv: nn.Module, inputs: tuple[Tensor], stride: tuple[int, int]) -> Tensor:
    (x,) = inputs
    return F.conv2d(x, conv.blur_filter, stride=stride, padding=1, groups=x.shape[1])  # type: ignore[arg-type]


def _shifted(conv: nn.Module, inputs: tuple[Tensor], stride: tuple[int, int]) -> Tensor:
    (x,) = inputs
    # its gradient is autograd's: one of our own moved fewer bytes, and torch 2.11 compiled it to zeros
    return _sum_of_shifts(x, stride)


def _sum_of_shifts(x: Tensor, stride: tuple[int, int]) -> Tensor:
    """x: (batch, channels, height, width), blurred with zeros around it; every stride-th value."""
    # half precision rounds once, at the end, as in a convolution
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    padded = F.pad(wide, (1, 1, 1, 1))
    return (_along(_along(padded, 2, stride[0]), 3, stride[1]) / 16).to(x.dtype)


def _along(padded: Tensor, dimension: int, stride: int) -> Tensor:
    """[1, 2, 1] along one dimension, without padding."""
    before, at, after = (
        padded[(slice(None),) * dimension + (slice(shift, padded.shape[dimension] - 2 + shift, stride),)]
        for shift in range(3)
    )
    return before + 2 * at + after
