"""What `acdc prune` measured: a row and a point on the curve for each target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from acdc_cli.analysis.base import plotting
from acdc_cli.analysis.base.findings import Findings, Table
from acdc_cli.jobs.pruned_recipe import Asked
from acdc_cli.quantities import Measures, Quantity

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def findings(
    asked: Asked, measures: Measures, before: Mapping[str, Any], after: Sequence[Mapping[str, Any]]
) -> Findings:
    """before: metrics of the unpruned model.  after: those at each target."""
    named = [("before", before), *((f"{target:g}", each) for target, each in zip(asked.targets, after, strict=True))]
    keys = [*(each.key for each in measures.all), "loss", "sparsity", "sparsity_all", "flops"]
    return Findings(
        numbers={
            "before": dict(before),
            "targets": [{"target": t} | dict(a) for t, a in zip(asked.targets, after, strict=True)],
        },
        summary=Table(
            ("target", *(each.name for each in measures.all), "loss", "zeros", "zeros of all", "MFLOPs"),
            [_row(name, measures, each) for name, each in named],
        ),
        tables={"": Table(("target", *keys), [(name, *(each[key] for key in keys)) for name, each in named])},
        figures={"": _curve(asked, measures.headline, before, after)} if len(after) > 1 else {},
    )


def _row(name: str, measures: Measures, measured: Mapping[str, Any]) -> tuple[str, ...]:
    flops = "?" if measured["flops"] is None else f"{measured['flops'] / 1e6:.4g}"
    results = (each.shown(measured[each.key]) + (" %" if each.unit == "%" else "") for each in measures.all)
    zeros = (f"{100 * measured[key]:.2f} %" for key in ("sparsity", "sparsity_all"))
    return name, *results, f"{measured['loss']:.4f}", *zeros, flops


def _curve(asked: Asked, headline: Quantity, before: Mapping[str, Any], after: Sequence[Mapping[str, Any]]) -> Figure:
    figure = plotting.new(6, 4)
    axes = figure.subplots()
    points = sorted(zip(asked.targets, after, strict=True), key=lambda point: point[0])
    axes.axhline(
        headline.scale * before[headline.key], color="grey", linestyle="--", linewidth=1, label="before pruning"
    )
    style = next(plotting.styles())
    axes.plot(
        [100 * t for t, _ in points],
        [headline.scale * each[headline.key] for _, each in points],
        **style,
        label=asked.method,
    )
    axes.set(xlabel="target sparsity (%)", ylabel=headline.axis)
    if headline.unit == "%":
        axes.set(ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left" if headline.better == "more" else "upper left")
    return figure
