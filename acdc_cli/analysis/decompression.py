"""Weights that stay zero in dense phases although no mask holds them there (P2 L, Figure L.6)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from acdc_cli.analysis.base import plotting
from acdc_cli.analysis.base.findings import Findings, Table
from acdc_cli.analysis.base.forecast import Forecast
from acdc_cli.analysis.base.subject import Subject, records_of, whole_run_of
from acdc_cli.analysis.base.workspace import Workspace
from acdc_cli.analysis.curves import phases, shade
from acdc_cli.errors import RunError
from acdc_cli.recipe.blocks.base import Block

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]

_COLUMNS = ("run", "weight_decay", "phase", "first_epoch", "last_epoch", "first_sparsity", "last_sparsity", "imposed")


@dataclass(frozen=True)
class DensePhase:
    """Epochs count from 0; sparsities are fractions of the prunable weights."""

    number: int
    """0 is the warm-up, before any pruning; 1 is the first decompression."""
    first_epoch: int
    last_epoch: int
    first_sparsity: float
    """Weights that are exactly zero at the end of the first epoch, masked or not."""
    last_sparsity: float
    """The same at the end of the last epoch."""
    imposed: float
    """Weights that masks hold at zero throughout the phase: `dense_sparsity`, "sparse decompression"."""


def analyze(subjects: Sequence[Subject], options: Block, workspace: Workspace) -> Findings:
    """Raises RunError for a file, and for a run that has no dense phase after a sparse one."""
    records = {subject.name: _records(subject) for subject in subjects}
    dense = {name: dense_phases(each) for name, each in records.items()}
    decays = {subject.name: subject.recipe.optim.weight_decay for subject in subjects}
    return Findings(
        numbers={
            "runs": {
                name: {"weight_decay": decays[name], "phases": [asdict(phase) for phase in each]}
                for name, each in dense.items()
            }
        },
        summary=Table(
            ("run", "phase", "epochs", "zeros: first", "last", "imposed"),
            [(name, *_shown(phase)) for name, each in dense.items() for phase in each],
        ),
        tables={
            "": Table(
                _COLUMNS,
                [(name, decays[name], *asdict(phase).values()) for name, each in dense.items() for phase in each],
            )
        },
        figures={"": draw({_label(name, decays): each for name, each in records.items()})},
    )


def missing(runs: Sequence[Forecast], options: Block) -> list[str]:
    return [_never_dense(run.name) for run in runs if all(each.kind != "dense" for each in run.phases.phases[1:])]


def dense_phases(records: Records) -> list[DensePhase]:
    """The dense phases in a run's records (`RunDir.records`), the warm-up included. The records must not be empty."""
    by_epoch = {record["epoch"]: record for record in records}
    dense = [(start, end - 1) for kind, start, end in phases(records) if kind == "dense"]
    warms_up = records[0]["phase"] == "dense"
    return [
        DensePhase(
            number=number,
            first_epoch=first,
            last_epoch=last,
            first_sparsity=by_epoch[first]["sparsity"],
            last_sparsity=by_epoch[last]["sparsity"],
            imposed=by_epoch[last]["mask_sparsity"],
        )
        for number, (first, last) in enumerate(dense, 0 if warms_up else 1)
    ]


def draw(runs: Mapping[str, Records]) -> Figure:
    """Zeros at the end of each dense epoch, of runs by their labels; sparse phases are shaded if all runs share them.

    Faint lines connect the dense phases of a run.
    """
    figure = plotting.new(7, 4.5)
    panel = figure.subplots()
    if len({tuple(phases(records)) for records in runs.values()}) == 1:
        shade(panel, next(iter(runs.values())), named=True)
    highest = 0.0
    for (label, records), style in zip(runs.items(), plotting.styles(), strict=False):
        epochs = [record["epoch"] + 1 for record in records]
        shares = [100 * record["sparsity"] if record["phase"] == "dense" else math.nan for record in records]
        dense = [(epoch, share) for epoch, share in zip(epochs, shares, strict=True) if not math.isnan(share)]
        panel.plot(*zip(*dense, strict=True), color=style["color"], linewidth=0.8, alpha=0.4)
        panel.plot(epochs, shares, label=label, **style)
        highest = max(highest, *(share for _, share in dense))
    panel.set(xlabel="epochs trained", ylabel="zero weights in dense phases (%)")
    panel.set(xlim=(0, None), ylim=(-0.03 * max(highest, 1), 1.1 * max(highest, 1)))
    figure.legend(loc="outside lower center", fontsize=8, ncols=2)
    panel.grid(axis="y", alpha=0.3)
    return figure


def _records(subject: Subject) -> list[dict[str, Any]]:
    whole_run_of(subject)
    records = records_of(subject)
    if all(phase.number == 0 for phase in dense_phases(records)):
        raise RunError(_never_dense(subject.name))
    return records


def _never_dense(run: str) -> str:
    return f"{run}: no dense phase has followed a sparse one yet; name a run of a method with dense phases: acdc, dsd"


def _label(name: str, decays: Mapping[str, float]) -> str:
    """The name, with the weight decay if it differs between runs."""
    return f"{name}, weight decay {decays[name]:g}" if len(set(decays.values())) > 1 else name


def _shown(phase: DensePhase) -> tuple[str, ...]:
    number = str(phase.number) if phase.number else "warm-up"
    epochs = (
        f"{phase.first_epoch}–{phase.last_epoch}" if phase.last_epoch > phase.first_epoch else f"{phase.last_epoch}"
    )
    shares = (phase.first_sparsity, phase.last_sparsity, phase.imposed)
    return number, epochs, *(f"{share:.2%}" for share in shares)
