"""A plan as text: tables of its epochs, layers and totals, for a terminal of 80 columns."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from math import prod
from typing import Any

from acdc_cli import console
from acdc_cli.cost.conventions import NAMES
from acdc_cli.jobs.run_plan import Plan, PlannedEpoch

LAYERS = ("layer", "shape", "weights", "density", "kept dense by")
TOTALS = ("", "")


def epoch_columns(plan: Plan) -> tuple[str, ...]:
    size, _ = plan.samples.short_words
    return ("epochs", "phase", "zeros", "all", "lr", "to", size, "fwd", "train", "cost")


def explained(plan: Plan) -> str:
    """Explains the columns of the epoch table."""
    convention = plan.totals.convention
    return (
        f"{plan.name}, priced by convention {convention} ({NAMES[convention]})\n"
        "zeros, all: % of the pruned layers' weights, % of all conv and linear weights\n"
        f"fwd, train: GFLOPs of {plan.samples.one}; cost: training so far, in dense trainings"
    )


def epoch_rows(plan: Plan, every: int | None = None) -> list[tuple[str, ...]]:
    """Ranges of epochs that differ only in their learning rate, or every Nth epoch and the last."""
    if every is None:
        ranges = [list(group) for _, group in groupby(plan.epochs, key=_in_common)]
    else:
        last = len(plan.epochs) - 1
        ranges = [[epoch] for epoch in plan.epochs if epoch.epoch % every == 0 or epoch.epoch == last]
    return [_epoch_row(alike[0], alike[-1]) for alike in ranges]


def _in_common(epoch: PlannedEpoch) -> tuple[Any, ...]:
    return epoch.phase, epoch.sparsity, epoch.resolution, epoch.forward_flops, epoch.train_flops


def _epoch_row(first: PlannedEpoch, last: PlannedEpoch) -> tuple[str, ...]:
    return (
        f"{first.epoch}" if first is last else f"{first.epoch}-{last.epoch}",
        first.phase,
        _percent(first.sparsity),
        _percent(first.sparsity_all),
        f"{first.lr_start:.1e}",
        f"{last.lr_end:.1e}",
        str(first.resolution),
        f"{float(first.forward_flops) / 1e9:.3g}",
        f"{float(first.train_flops) / 1e9:.3g}",
        f"{last.cost:.3f}",
    )


def layer_rows(plan: Plan) -> list[tuple[str, ...]]:
    """Name, shape, weights, and the target density or the reason why there is none."""
    return [
        (
            layer.name,
            "x".join(map(str, layer.shape)),
            str(prod(layer.shape)),
            "?" if layer.density is None else f"{_percent(layer.density)}%",
            layer.why or "",
        )
        for layer in plan.layers
    ]


def total_rows(plan: Plan) -> list[tuple[str, str]]:
    totals, memory = plan.totals, plan.memory
    nonzero = (
        "learned" if totals.nonzero is None else f"{totals.nonzero:,} ({_percent(totals.nonzero / totals.params, 1)}%)"
    )
    of_memory = ", ".join(f"{what} {_mega(size)}" for what, size in asdict(memory).items() if size)
    return [
        ("parameters", f"{totals.params:,}"),
        ("not zero at the end", nonzero),
        (
            f"inference at {plan.inference_resolution} {plan.samples.short_words[0]}",
            f"{console.with_prefix(float(totals.inference_flops), 4)}FLOPs, {totals.inference_ratio:.3f} of dense",
        ),
        ("training", f"{console.with_prefix(float(totals.train_flops))}FLOPs, {totals.train_ratio:.3f} of dense"),
        (f"{plan.samples.noun} seen", f"{totals.images:,} in {totals.steps:,} optimiser steps"),
        ("memory", f"{_mega(sum(asdict(memory).values()))} and activations: {of_memory}"),
        ("checkpoint", f"{_mega(plan.checkpoint)}, and as much for the previous one"),
    ]


def _percent(share: float | None, decimals: int = 2) -> str:
    """With more decimals where rounding would give 0 % or 100 %."""
    if share is None:
        return "?"
    while 0 < share < 1 and round(100 * share, decimals) in (0, 100):
        decimals += 1
    return f"{100 * share:.{decimals}f}"


def _mega(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
