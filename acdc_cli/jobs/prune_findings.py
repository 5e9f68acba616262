"""What `acdc prune` measured: a row and a point on the curve for each target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from acdc_cli.analysis.base import plotting
from acdc_cli.analysis.base.findings import Findings, Table
from acdc_cli.jobs.pruned_recipe import Asked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MEASURES = ("top1", "top5", "loss", "entropy", "sparsity", "sparsity_all", "flops")


def findings(asked: Asked, before: Mapping[str, Any], after: Sequence[Mapping[str, Any]]) -> Findings:
    """before: metrics of the unpruned model.  after: those at each target."""
    named = [("before", before), *((f"{target:g}", each) for target, each in zip(asked.targets, after, strict=True))]
    return Findings(
        numbers={
            "before": dict(before),
            "targets": [{"target": t} | dict(a) for t, a in zip(asked.targets, after, strict=True)],
        },
        summary=Table(
            ("target", "top-1", "top-5", "loss", "entropy", "zeros", "zeros of all", "MFLOPs"),
            [_row(name, each) for name, each in named],
        ),
        tables={"": Table(("target", *_MEASURES), [(name, *(each[key] for key in _MEASURES)) for name, each in named])},
        figures={"": _curve(asked, before, after)} if len(after) > 1 else {},
    )


def _row(name: str, measured: Mapping[str, Any]) -> tuple[str, ...]:
    flops = "?" if measured["flops"] is None else f"{measured['flops'] / 1e6:.4g}"
    shares = (f"{100 * measured[key]:.2f} %" for key in ("top1", "top5", "sparsity", "sparsity_all"))
    top1, top5, zeros, zeros_all = shares
    return name, top1, top5, f"{measured['loss']:.4f}", f"{measured['entropy']:.4f}", zeros, zeros_all, flops


def _curve(asked: Asked, before: Mapping[str, Any], after: Sequence[Mapping[str, Any]]) -> Figure:
    figure = plotting.new(6, 4)
    axes = figure.subplots()
    points = sorted(zip(asked.targets, after, strict=True), key=lambda point: point[0])
    axes.axhline(100 * before["top1"], color="grey", linestyle="--", linewidth=1, label="before pruning")
    look = next(plotting.looks())
    axes.plot([100 * t for t, _ in points], [100 * each["top1"] for _, each in points], **look, label=asked.method)
    axes.set(xlabel="target sparsity (%)", ylabel="top-1 accuracy (%)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure
