"""Where a step's time goes: the longest kernels, and the shares of what they are for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from acdc_cli.recipe.load import load
from benchmarks.assemble import Resident, assemble
from benchmarks.gpu.trial import Trial, forget
from benchmarks.measure import Target
from benchmarks.sparse_step import STEPS_PER_EPOCH, brought_to_its_sparse_phase, settle

_ROWS = 40
_KINDS = (
    ("masks", r"BinaryOpListAlphaFunctor.*multiplies|_foreach_mul_"),
    ("optimiser", r"multi_tensor_apply|fused_?sgd|FusedSgd|_foreach_"),
    ("loss", r"softmax|nll_loss|cross_entropy"),
    ("blur", r"depthwise|grouped|group_conv|_groups_"),
    ("batch norm", r"batch_?norm|bn_(fw|bw)"),
    ("pooling", r"pool"),
    ("copy", r"copy|memcpy|memset|nchwToNhwc|nhwcToNchw|convertTensor|fill_"),
    ("convolution", r"conv|cudnn|xmma|gemm|cutlass|nvjet|cublas|wgrad|dgrad|fprop|addmm|::mm$"),
)
"""The first that fits a kernel's name is its kind."""


def run(trial: Trial) -> None:
    batch, side, steps = (2, 32, 1) if trial.smoke else (1024, 160, 3)
    resident = Resident(batch, side, STEPS_PER_EPOCH, trial.device)
    small = ("model.name=resnet20",) if trial.smoke else ()
    for name, words in {"compiled": (), "eager": ("compile=false",)}.items():
        recipe = load("resnet50_95", [f"device={trial.device.type}", "optim.lr=0.001", *small, *words])
        assembly = assemble(recipe, resident)
        epoch = brought_to_its_sparse_phase(assembly)
        assembly.steps(epoch, 3)
        settle()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if trial.cuda else [])]
        with profile(activities=activities, record_shapes=True) as profiled:
            assembly.steps(epoch, steps)
            settle()
        rows = longest(profiled.key_averages(), trial.cuda, steps)
        blur = blur_of(profiled.key_averages(group_by_input_shape=True), trial.cuda, steps)
        shares = shares_of(rows, blur)
        trial.record(**{name: {"shares": shares, "kernels": rows[:_ROWS]}})
        (trial.folder / f"kernels-{name}.txt").write_text(table(rows[:_ROWS]))
        for kind in ("blur", "batch norm", "masks", "optimiser"):
            target = Target("≤", 0.01) if kind == "masks" and name == "compiled" else None
            trial.line(f"{name}: share of {kind}", shares.get(kind, 0.0), "", target)
        del assembly
        forget()


def longest(events: Iterable[Any], cuda: bool, steps: int) -> list[dict[str, Any]]:
    """Kernels, or on the CPU operations, by falling time in ms of a step."""
    here = DeviceType.CUDA if cuda else DeviceType.CPU
    rows = [
        {
            "name": event.key,
            "kind": kind_of(event.key),
            "ms": round((event.self_device_time_total if cuda else event.self_cpu_time_total) / 1000 / steps, 4),
            "calls": event.count / steps,
        }
        for event in events
        # regions that torch marks on the device's time line contain the kernels
        if event.device_type == here and not event.is_user_annotation
    ]
    return sorted(rows, key=lambda row: -row["ms"])


def blur_of(events: Iterable[Any], cuda: bool, steps: int) -> float:
    """Milliseconds a step of convolutions with one input channel a filter, of which a ResNet has no others.

    A blur that is no convolution, which Inductor fuses into its neighbours, is not seen.
    """
    microseconds = sum(
        event.self_device_time_total if cuda else event.self_cpu_time_total
        for event in events
        if event.device_type == DeviceType.CPU and "conv" in event.key and any(map(_one_channel, event.input_shapes))
    )
    return microseconds / 1000 / steps


def _one_channel(shape: Any) -> bool:
    return len(shape) == 4 and shape[0] > 1 and tuple(shape[1:]) == (1, 3, 3)


def shares_of(rows: Iterable[dict[str, Any]], blur_ms: float) -> dict[str, float]:
    """Share of each kind in the time of all rows, the largest first. The blur's convolutions count as `blur` alone."""
    totals: dict[str, float] = {}
    for row in rows:
        # a kernel's name does not always tell what it convolves
        kind = "convolution" if row["kind"] == "blur" else row["kind"]
        totals[kind] = totals.get(kind, 0.0) + row["ms"]
    whole = sum(totals.values())
    if not whole:
        return {}
    totals["convolution"] = totals.get("convolution", 0.0) - blur_ms
    totals["blur"] = blur_ms
    return {kind: round(total / whole, 4) for kind, total in sorted(totals.items(), key=lambda item: -item[1])}


def kind_of(kernel: str) -> str:
    """By the name that CUDA's libraries, Inductor or ATen give it."""
    return next((kind for kind, pattern in _KINDS if re.search(pattern, kernel, re.IGNORECASE)), "other")


def table(rows: Iterable[dict[str, Any]]) -> str:
    lines = [f"{'ms/step':>9}  {'calls':>6}  {'kind':11}  name"]
    lines += [f"{row['ms']:9.3f}  {row['calls']:6g}  {row['kind']:11}  {row['name'][:160]}" for row in rows]
    return "\n".join(lines) + "\n"
