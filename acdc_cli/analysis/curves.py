"""A run at a glance: sparsity, loss and accuracy over epochs, phases shaded (P1, Figures 1 and 2a)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acdc_cli import files
from acdc_cli.errors import RunError
from acdc_cli.runs.run_dir import RunDir

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = Sequence[dict[str, Any]]

_SHADES = {"sparse": "0.85", "ramp": "0.93"}


def analyze(runs: Sequence[RunDir], out: Path) -> dict[str, Any]:
    """Draws curves.png and curves.svg into `out`: what was measured at the end of each epoch.

    The shaded phases are those of the first run. Raises RunError if a run has not ended an epoch yet.
    """
    records = {_title(run, runs): run.records() for run in runs}
    empty = [name for name, found in records.items() if not found]
    if empty:
        raise RunError(f"{', '.join(empty)}: no epoch has ended yet, so there is nothing to draw")
    with files.explained(out):
        out.mkdir(parents=True, exist_ok=True)
        return {"figures": _draw(records, out), "runs": records}


def _title(run: RunDir, runs: Sequence[RunDir]) -> str:
    """The directory's name; its path where several have that name."""
    alone = [other.path.name for other in runs].count(run.path.name) == 1
    return run.path.name if alone else str(run.path)


def phases(records: Records) -> list[tuple[str, int, int]]:
    """(kind, first epoch, epoch after the last) of each stretch of epochs of one kind."""
    stretches = []
    for kind, group in groupby(records, key=lambda record: str(record["phase"])):
        epochs = [record["epoch"] for record in group]
        stretches.append((kind, epochs[0], epochs[-1] + 1))
    return stretches


def _draw(runs: dict[str, list[dict[str, Any]]], out: Path) -> list[str]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6.5), layout="constrained")
    sparsity, loss, accuracy = panels = figure.subplots(3, sharex=True)
    for panel in panels:
        shade(panel, next(iter(runs.values())), named=panel is sparsity)
    for (name, records), style in zip(runs.items(), cycle(("-", "--", ":", "-."))):
        run = f"{name}: " if len(runs) > 1 else ""
        looks: dict[str, Any] = {"linestyle": style}
        steps(sparsity, records, "sparsity_all", label=f"{run}all conv and linear weights", color="tab:orange", **looks)
        steps(sparsity, records, "sparsity", label=f"{run}pruned layers", color="tab:blue", **looks)
        _line(loss, records, "train_loss", label=f"{run}training", color="tab:orange", marker="s", **looks)
        _line(loss, records, "val_loss", label=f"{run}validation", color="tab:blue", marker="o", **looks)
        _line(accuracy, records, "top1", scale=100, label=f"{run}validation", color="tab:blue", marker="o", **looks)
    sparsity.set(ylabel="zero weights (%)", ylim=(-3, 103), title=" · ".join(runs))
    loss.set(ylabel="cross entropy (nats)", yscale="log")
    accuracy.set(ylabel="top-1 (%)", xlabel="epochs trained", xlim=(0, None))
    for panel in panels:
        panel.legend(loc="best", fontsize=8)
        panel.grid(axis="y", alpha=0.3)
    files = [out / "curves.png", out / "curves.svg"]
    for file in files:
        figure.savefig(file, dpi=120)
    return [str(file) for file in files]


def _line(panel: Axes, records: Records, key: str, *, scale: float = 1, **looks: Any) -> None:
    epochs = [record["epoch"] + 1 for record in records]
    values = [math.nan if record[key] is None else scale * record[key] for record in records]
    panel.plot(epochs, values, markersize=3, **looks)


def steps(panel: Axes, records: Records, key: str, scale: float = 100, **looks: Any) -> None:
    """What is chosen at the start of an epoch, masks or a resolution, holds for all of it; shares come in percent."""
    edges = [records[0]["epoch"], *(record["epoch"] + 1 for record in records)]
    panel.stairs([scale * record[key] for record in records], edges, baseline=None, **looks)


def shade(panel: Axes, records: Records, named: bool) -> None:
    """Greys the sparse phases and the ramps; `named`: with a legend."""
    labels = {kind: f"{kind} phase" for kind in _SHADES} if named else {}
    for kind, start, end in phases(records):
        if kind in _SHADES:
            panel.axvspan(start, end, color=_SHADES[kind], linewidth=0, label=labels.pop(kind, ""))
