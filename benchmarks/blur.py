"""BlurPool in ResNet-50: bytes that its blurs move, by shapes and by Inductor's count; CPU time of a bottleneck."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acdc_cli.models import build
from acdc_cli.models.blurpool import apply_blurpool
from benchmarks.measure import alternate, compare, cpus, timed

FORMS = ("whole", "convolution", "shifts")
"""A blur with stride 1 before every strided convolution, as FFCV has it; the two of the recipe's `model.blur`."""


def run(smoke: bool) -> dict[str, Any]:
    batch, side, rounds = (1, 8, 1) if smoke else (16, 40, 7)
    # the compiler takes a minute for each
    steps, moved = zip(*(_bottleneck(form, batch, side, compiled=not smoke) for form in FORMS), strict=True)
    contestants = {form: partial(timed, step) for form, step in zip(FORMS, steps, strict=True)}
    alternate(contestants, 1)
    times = cpus(alternate(contestants, rounds), 1000)
    what = f"a step of ResNet-50's layer2.0, {side} px, batch {batch}, one core"
    comparisons = [compare(what, "CPU ms", times, form, "whole") for form in FORMS[1:]]
    shapes = {form: blurred_bytes(1024, 160, form) / 1e9 for form in FORMS}
    counted = {form: each / 1e6 for form, each in zip(FORMS, moved, strict=True)}
    notes = [
        f"{form}: ResNet-50's blurs move {shapes[form]:.2f} GB a step (batch 1024, 160 px, bf16); "
        f"Inductor's kernels of that bottleneck {counted[form]:.1f} MB (fp32)"
        for form in FORMS
    ]
    return {"comparisons": comparisons, "gigabytes_by_shape": shapes, "megabytes_by_inductor": counted, "notes": notes}


def blurred_bytes(batch: int, side: int, form: str, element: int = 2) -> int:
    """What the blurs of ResNet-50 read and write in a step, forward and backward, at `element` bytes a number.

    Of `shifts` it is the least: those before 3x3 convolutions have their input for themselves, so that forward and
    backward they cost nothing beside the batch norm and ReLU that they are fused with; those of the shortcuts do not.
    """
    with torch.device("meta"):
        model = build.find("resnet50")(num_classes=1000).eval()
        names = apply_blurpool(model)
        moved: list[int] = []
        for name in names:
            model.get_submodule(name).register_forward_pre_hook(partial(_count, moved, form), prepend=True)
        with torch.no_grad():
            model(torch.empty(1, 3, side, side))
    return batch * element * sum(moved)


def _count(moved: list[int], form: str, conv: nn.Module, inputs: tuple[Tensor]) -> None:
    assert isinstance(conv, nn.Conv2d)
    whole = prod(inputs[0].shape)
    is_shortcut = conv.kernel_size == (1, 1)
    if form == "shifts" and not is_shortcut:
        moved.append(0)
        return
    kept = whole // 4 if is_shortcut and form != "whole" else whole
    # the backward pass reads the gradient of what was kept and writes that of the input
    moved.append(2 * (whole + kept))


def _bottleneck(form: str, batch: int, side: int, compiled: bool) -> tuple[Callable[[], None], int]:
    """A training step of ResNet-50's layer2.0, and the bytes that Inductor's kernels for it read and write."""
    from torch._inductor import metrics
    from torch._inductor.utils import fresh_cache

    torch.set_num_threads(1)
    torch.manual_seed(0)
    block = build.find("resnet50")(num_classes=10).get_submodule("layer2.0")
    apply_blurpool(block, "shifts" if form == "shifts" else "convolution")
    if form == "whole":
        shortcut = block.get_submodule("downsample.0")
        assert isinstance(shortcut, nn.Conv2d)
        shortcut.stride = (2, 2)
        shortcut._forward_pre_hooks.clear()
        shortcut.register_forward_pre_hook(_whole)
    # what comes before it, so that its gradient too is computed
    model = nn.Sequential(nn.BatchNorm2d(256), nn.ReLU(), block).to(memory_format=torch.channels_last)
    forward = torch.compile(model, dynamic=False) if compiled else model
    images = torch.randn(batch, 256, side, side).to(memory_format=torch.channels_last).requires_grad_()

    def step() -> None:
        forward(images).square().mean().backward()

    metrics.reset()
    # Inductor counts bytes only while it logs them, and only for what it has not compiled before
    torch._logging.set_logs(inductor_metrics=True)
    with fresh_cache():
        step()
    torch._logging.set_logs()
    return step, int(metrics.num_bytes_accessed)


def _whole(conv: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    (x,) = inputs
    return F.conv2d(x, conv.blur_filter, padding=1, groups=x.shape[1])  # type: ignore[arg-type]
