"""A study's figures: the panels of P2's Figure C.1, the headline against training FLOPs, and every run's curves."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from acdc_cli import console
from acdc_cli.analysis.base import plotting
from acdc_cli.analysis.base.plotting import COLOURS, LINES, MARKERS
from acdc_cli.analysis.curves import phases
from acdc_cli.quantities import Measures, Quantity
from acdc_cli.statistics import Spread
from acdc_cli.studies.results import Run
from acdc_cli.studies.summary import Group, Series, Summary, accuracy_and_cost, front_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS = Quantity("train_cross_entropy", "training cross entropy", "train", "nats")
_INK, _PAPER, _GRID, _SHADE = "#1a1a1b", "#ffffff", "#dcdcdd", "#ededee"
ROLES = {_INK: "--ink", _PAPER: "--paper", _GRID: "--grid", _SHADE: "--shade"} | {
    colour: f"--line-{number}" for number, colour in enumerate(COLOURS)
}
"""The page's CSS variable for each colour, which changes in dark mode."""


def quantities(measures: Measures) -> tuple[Quantity, Quantity, Quantity]:
    """What the panels of P2's Figures C.1 and C.2 and the curves show."""
    return measures.headline, LOSS, measures.confidence


def panels(summary: Summary) -> Figure:
    """Figure C.1: accuracy, training cross entropy and validation entropy (C.2: uncertainty), one line per series."""
    figure = _figure(11, 4.2)
    for axes, shown in zip(figure.subplots(1, 3), quantities(summary.measures), strict=True):
        _panel(axes, summary, shown)
    _legend(figure, summary, loc="outside lower center", ncols=6)
    return figure


def panel(summary: Summary, shown: Quantity) -> Figure:
    """One panel alone, without the legend."""
    figure = _figure(3.7, 3.2)
    _panel(figure.subplots(), summary, shown)
    return figure


def legend(summary: Summary) -> Figure:
    """The legend shared by all figures."""
    columns = 3 if max(len(series.name) for series in summary.series) < 12 else 1
    figure = _figure(3.9, 0.25 + 0.23 * math.ceil((len(summary.series) + 1) / columns))
    _legend(figure, summary, loc="center", ncols=columns)
    return figure


def pareto(summary: Summary) -> Figure | None:
    """The headline against training FLOPs; None if no group has both."""
    points = accuracy_and_cost(summary.groups)
    if not points:
        return None
    headline = summary.measures.headline
    figure = _figure(4.8, 3.9)
    axes = figure.subplots()
    front = front_of(points, headline)
    costs = [points[key][0] for key in front]
    axes.step(
        costs, [headline.scale * points[key][1] for key in front], where="post", color=_INK, linewidth=0.8, zorder=1
    )
    for series, style in _styles(summary):
        groups = [group for group in series.groups if (group.series, group.x) in points]
        _errorbar(axes, groups, lambda group: points[group.series, group.x][0], _last(headline), {**style, "ls": ""})
    for key in front:
        cost, value = points[key]
        place = (cost, headline.scale * value)
        axes.plot(*place, marker="o", markersize=14, color=_INK, fillstyle="none", linewidth=0, mew=0.8)
    unlabelled = {(group.series, group.x) for group in summary.groups if group.dense and summary.along.sparsities}
    above, below = (7, -9) if headline.better == "more" else (-13, 5)
    for key, (cost, value) in points.items():
        # the region to the left of the front, where models would be cheaper and better, contains none
        away, side = ((-6, above), "right") if key in front else ((5, below), "left")
        place = (cost, headline.scale * value)
        # the study lists a dense model under one of the sparsities, none of which is its own
        text = "" if key in unlabelled else str(key[1])
        axes.annotate(text, place, away, textcoords="offset points", ha=side, size=7, color=_INK)
    plotting.log(axes, "x", console.with_prefix)
    axes.set(xlabel="training FLOPs (measured)", ylabel=f"validation {headline.axis}")
    _style_axes(axes)
    _legend(figure, summary, "on the Pareto front", loc="outside lower center", ncols=3)
    return figure


def curves(series: Series, axis: str) -> Figure | None:
    """Every run of a series, epoch by epoch, unfinished runs included; None if no run has ended an epoch."""
    columns = {f"{axis} {group.x}: {len(group.done)} of {len(group.runs)} done": group.runs for group in series.groups}
    return curves_side_by_side(columns)


def curves_side_by_side(columns: Mapping[str, Sequence[Run]]) -> Figure | None:
    """Accuracy, loss and entropy of runs, in a column for each title; None if no run has ended an epoch."""
    from matplotlib.ticker import MaxNLocator

    shown = {title: runs for title, runs in columns.items() if any(run.records for run in runs)}
    if not shown:
        return None
    figure = _figure(1.2 + 2.1 * len(shown), 5.4)
    measures = [next(run.measures for run in runs if run.records) for runs in shown.values()]
    alike = all(each == measures[0] for each in measures)
    grid = figure.subplots(3, len(shown), sharey="row" if alike else False, sharex="col", squeeze=False)
    seeds = list(dict.fromkeys(run.seed for runs in columns.values() for run in runs))
    for column, (title, runs) in enumerate(shown.items()):
        of_task = quantities(measures[column])
        for row, each in enumerate(of_task):
            axes = grid[row][column]
            _shade(axes, runs)
            for run in runs:
                _curve(axes, run, each, of_task[0].key, seeds.index(run.seed))
            _style_axes(axes)
            axes.set_ylabel(_titled(each).replace(" ", "\n", 1) if column == 0 or not alike else "")
        grid[0][column].set_title(title, size=9, color=_INK)
        grid[-1][column].set(xlabel="epochs trained", xlim=(0, None))
        grid[-1][column].xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    handles = {line.get_label(): line for axes in grid.flat for line in axes.get_lines()}
    _colour(figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8))
    return figure


def inline(drawn: str, name: str, title: str) -> str:
    """An SVG to embed in a page, with its own ids, the page's colours and a title."""
    body = drawn[drawn.index("<svg") :]
    body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub("|".join(ROLES), lambda match: f"var({ROLES[match[0]]})", body)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', body).groups()  # type: ignore[union-attr]
    opening = (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width} {height}" role="img" '
        f'style="--width: {float(width):g}" aria-labelledby="{name}-title"><title id="{name}-title">{title}</title>'
    )
    return re.sub(r"<metadata>.*?</metadata>", "", opening + body[body.index(">") + 1 :], flags=re.DOTALL)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor=_PAPER)


def _styles(summary: Summary) -> list[tuple[Series, dict[str, Any]]]:
    """The style of each series: distinct colours, markers and lines, readable in grey; dense models are dashed."""
    sparse = [series for series in summary.series if not series.dense]
    sparse_styles: dict[str, dict[str, Any]] = {
        series.name: {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
            "ls": LINES[number % len(LINES)],
        }
        for number, series in enumerate(sparse)
    }
    dense = {"color": _INK, "marker": "X", "ls": "--"}
    return [(series, sparse_styles.get(series.name, dense)) for series in summary.series]


def _titled(shown: Quantity, loss: str = "") -> str:
    """`validation top-1 (%)`.  loss: words after the name of the training loss."""
    return f"{shown.name}{loss} ({shown.unit})" if shown is LOSS else f"validation {shown.axis}"


def _panel(axes: Axes, summary: Summary, shown: Quantity) -> None:
    key, scale, along = shown.key, shown.scale, summary.along
    for series, style in _styles(summary):
        groups = [group for group in series.groups if group.last(key) and not (along.sparsities and group.dense)]
        line = style if along.numeric else {**style, "ls": ""}
        _errorbar(axes, groups, lambda group: _place(summary, group), _last(shown), line)
        if (best := series.best) and best in groups and len(groups) > 1:
            mean = best.last(key).mean  # type: ignore[union-attr]
            axes.plot(
                _place(summary, best),
                scale * mean,
                marker=style["marker"],
                color=style["color"],
                mfc=style["color"] if best.complete else _PAPER,
                ms=12,
                mec=_INK,
                zorder=3,
            )
    with_level = shown != summary.measures.headline or along.sparsities
    if with_level and (dense := summary.best_dense) and (level := dense.last(key)):
        axes.axhline(scale * level.mean, color=_INK, ls="--", linewidth=0.8, zorder=1)
    _ticks(axes, summary)
    axes.set_title(_titled(shown, ", last epoch"), size=9, color=_INK)
    _style_axes(axes)


def _place(summary: Summary, group: Group) -> float:
    return float(group.x) if summary.along.numeric else summary.along.values.index(group.x)


def _last(shown: Quantity) -> Callable[[Group], tuple[float, float]]:
    def value(group: Group) -> tuple[float, float]:
        spread = group.last(shown.key)
        assert isinstance(spread, Spread)
        return shown.scale * spread.mean, shown.scale * (spread.std or 0)

    return value


def _errorbar(
    axes: Axes,
    groups: Sequence[Group],
    place: Callable[[Group], float],
    value: Callable[[Group], tuple[float, float]],
    style: Mapping[str, Any],
) -> None:
    """Hollow markers: some runs of the group have not ended."""
    if not groups:
        return
    x, (y, error) = [place(group) for group in groups], zip(*map(value, groups), strict=True)
    axes.errorbar(x, y, error, **{**style, "marker": ""}, capsize=3, linewidth=1.4, zorder=2)
    for group, at, mean in zip(groups, x, y, strict=True):
        face = style["color"] if group.complete else _PAPER
        axes.plot(at, mean, marker=style["marker"], color=style["color"], mfc=face, ms=6, linewidth=0, zorder=3)


def _ticks(axes: Axes, summary: Summary) -> None:
    along = summary.along
    if along.log:
        axes.set_xscale("log")
    at = [_place_of(summary, value) for value in along.values]
    axes.set_xticks(at, [f"{value:g}" if along.numeric else str(value) for value in along.values])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(along.axis)


def _place_of(summary: Summary, value: Any) -> float:
    return float(value) if summary.along.numeric else summary.along.values.index(value)


def _style_axes(axes: Axes) -> None:
    axes.set_facecolor(_PAPER)
    axes.grid(axis="y", color=_GRID)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=_INK, labelsize=8)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=_INK, size=9)
    for side, spine in axes.spines.items():
        spine.set(color=_INK, visible=side in ("left", "bottom"))


def _legend(figure: Figure, summary: Summary, circled: str = "best of its line", **placement: Any) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], label=series.name, **style) for series, style in _styles(summary)]
    lines.append(Line2D([], [], label=circled, color=_INK, marker="o", ms=10, mfc=_PAPER, linewidth=0))
    _colour(figure.legend(handles=lines, fontsize=8, handlelength=3.5, **placement))


def _colour(box: Any) -> None:
    box.get_frame().set(edgecolor=_PAPER, facecolor=_PAPER)
    for text in box.get_texts():
        text.set_color(_INK)


def _curve(axes: Axes, run: Run, quantity: Quantity, validated: str, number: int) -> None:
    """validated: a key that is null in epochs without validation."""
    key = quantity.key
    # an epoch without validation is left out, so that the line continues; a value that is not finite breaks it
    shown = [record for record in run.records if quantity is LOSS or record[validated] is not None]
    if shown:
        values = [math.nan if record.get(key) is None else quantity.scale * record[key] for record in shown]
        axes.plot(
            [record["epoch"] + 1 for record in shown],
            values,
            label=f"seed {run.seed}",
            color=COLOURS[number % len(COLOURS)],
            ls=LINES[number % len(LINES)],
            linewidth=1.3,
            # a single validation is a point
            marker="." if len(shown) < len(run.records) else "",
        )


def _shade(axes: Axes, runs: Sequence[Run]) -> None:
    """Shades the sparse phases of the run with the most epochs."""
    furthest = max(runs, key=lambda run: len(run.records))
    for kind, start, end in phases(list(map(dict, furthest.records))):
        if kind in ("sparse", "ramp"):
            axes.axvspan(start, end, color=_SHADE, linewidth=0)
