"""A run at a glance: sparsity, loss and accuracy over epochs, phases shaded (P1, Figures 1 and 2a)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, groupby
from typing import TYPE_CHECKING, Any

from acdc_cli.analysis.base import plotting
from acdc_cli.analysis.base.findings import Findings, Table
from acdc_cli.analysis.base.subject import Subject, records_of, whole_run_of
from acdc_cli.analysis.base.workspace import Workspace
from acdc_cli.quantities import Quantity
from acdc_cli.recipe.blocks.base import Block
from acdc_cli.recipe.kinds import measures_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]

_SHADES = {"sparse": "0.85", "ramp": "0.93"}
_COLUMNS = (
    "epoch",
    "phase",
    "lr",
    "resolution",
    "length",
    "sparsity",
    "sparsity_all",
    "train_loss",
    "train_cross_entropy",
    "val_loss",
)
"""Columns of every task; those of the runs' tasks follow."""


def analyze(subjects: Sequence[Subject], options: Block, workspace: Workspace) -> Findings:
    """Raises RunError if a run has not ended an epoch yet, or if one of
    its models was named."""
    for subject in subjects:
        whole_run_of(subject)
    runs = {subject.name: records_of(subject) for subject in subjects}
    headlines = {subject.name: measures_of(subject.recipe.task.name).headline for subject in subjects}
    measures = [measures_of(subject.recipe.task.name) for subject in subjects]
    own = dict.fromkeys(key for each in measures for key in (each.confidence.key, each.headline.key))
    known = {key for records in runs.values() for record in records for key in record}
    columns = tuple(key for key in (*_COLUMNS, *own) if key in known)
    rows = [(name, *(record.get(key) for key in columns)) for name, records in runs.items() for record in records]
    return Findings(
        numbers={"runs": runs},
        summary=Table(
            ("run", "epochs", "sparsity", "training loss", _names(headlines)),
            [(name, str(len(records)), *_shown(records[-1], headlines[name])) for name, records in runs.items()],
        ),
        tables={"": Table(("run", *columns), rows)},
        figures={"": draw(runs, headlines)},
    )


def _names(headlines: Mapping[str, Quantity]) -> str:
    return " or ".join(dict.fromkeys(each.name for each in headlines.values()))


def _axis(headlines: Mapping[str, Quantity]) -> str:
    if all(each.unit == "%" for each in headlines.values()):
        return f"{_names(headlines)} (%)"
    return " or ".join(dict.fromkeys(each.axis for each in headlines.values()))


def _shown(record: Mapping[str, Any], headline: Quantity) -> tuple[str, ...]:
    loss, accuracy = record["train_loss"], record[headline.key]
    shown = "-" if accuracy is None else headline.spelt(accuracy)
    return f"{record['sparsity']:.2%}", "?" if loss is None else f"{loss:.4f}", shown


def phases(records: Records) -> list[tuple[str, int, int]]:
    """(kind, first epoch, epoch after the last) of each run of consecutive epochs of one kind."""
    stretches = []
    for kind, group in groupby(records, key=lambda record: str(record["phase"])):
        epochs = [record["epoch"] for record in group]
        stretches.append((kind, epochs[0], epochs[-1] + 1))
    return stretches


def draw(runs: Mapping[str, Records], headlines: Mapping[str, Quantity]) -> Figure:
    """The measurements at the end of each epoch, of runs by their names; phases of one run are shaded.

    headlines: of the runs' tasks.
    """
    figure = plotting.new(7, 6.5)
    sparsity, loss, accuracy = panels = figure.subplots(3, sharex=True)
    if len(runs) == 1:
        for panel in panels:
            shade(panel, next(iter(runs.values())), named=panel is sparsity)
    for (name, records), dashes in zip(runs.items(), cycle(("-", "--", ":", "-.")), strict=False):
        run = f"{name}: " if len(runs) > 1 else ""
        headline = headlines[name]
        style: dict[str, Any] = {"linestyle": dashes, "validated": headline.key}
        stepped: dict[str, Any] = {"linestyle": dashes}
        steps(
            sparsity, records, "sparsity_all", label=f"{run}all conv and linear weights", color="tab:orange", **stepped
        )
        steps(sparsity, records, "sparsity", label=f"{run}pruned layers", color="tab:blue", **stepped)
        _line(loss, records, "train_loss", label=f"{run}training", color="tab:orange", marker="s", **style)
        _line(loss, records, "val_loss", label=f"{run}validation", color="tab:blue", marker="o", **style)
        seen = {"label": f"{run}validation", "color": "tab:blue", "marker": "o"}
        _line(accuracy, records, headline.key, scale=headline.scale, **seen, **style)
    sparsity.set(ylabel="zero weights (%)", ylim=(-3, 103), title=" · ".join(runs))
    loss.set(ylabel="cross entropy (nats)")
    plotting.log(loss, "y")
    accuracy.set(ylabel=_axis(headlines), xlabel="epochs trained", xlim=(0, None))
    for panel in panels:
        panel.legend(loc="best", fontsize=8)
        panel.grid(axis="y", alpha=0.3)
    return figure


def _line(panel: Axes, records: Records, key: str, *, validated: str, scale: float = 1, **style: Any) -> None:
    """validated: a key that is null in epochs without validation."""
    # an epoch without validation is left out; a value that is not finite breaks the line
    shown = [record for record in records if key == "train_loss" or record[validated] is not None]
    values = [math.nan if record[key] is None else scale * record[key] for record in shown]
    panel.plot([record["epoch"] + 1 for record in shown], values, markersize=3, **style)


def steps(panel: Axes, records: Records, key: str, scale: float = 100, **style: Any) -> None:
    """A value set at the start of an epoch (a mask's sparsity, a resolution) holds for the whole epoch; shares are in
    percent."""
    edges = [records[0]["epoch"], *(record["epoch"] + 1 for record in records)]
    panel.stairs([scale * record[key] for record in records], edges, baseline=None, **style)


def shade(panel: Axes, records: Records, named: bool) -> None:
    """Greys the sparse phases and the ramps. named: with a legend."""
    labels = {kind: f"{kind} phase" for kind in _SHADES} if named else {}
    for kind, start, end in phases(records):
        if kind in _SHADES:
            panel.axvspan(start, end, color=_SHADES[kind], linewidth=0, label=labels.pop(kind, ""))
