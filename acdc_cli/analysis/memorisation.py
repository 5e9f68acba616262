"""Training samples with wrong labels: classified as the true class or as the wrong label (P1, Section 4, Fig. 2b)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from acdc_cli.analysis.base import plotting
from acdc_cli.analysis.base.findings import Findings, Table
from acdc_cli.analysis.base.forecast import Forecast
from acdc_cli.analysis.base.subject import Subject, records_of, whole_run_of
from acdc_cli.analysis.base.workspace import Workspace
from acdc_cli.analysis.curves import Records, phases, shade
from acdc_cli.errors import RunError
from acdc_cli.recipe.blocks.base import Block

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = ("epoch", "phase", "sparsity", "corrupted_true", "corrupted_given", "corrupted_neither")
_MARKERS = 25
"""Largest number of markers on a line."""


@dataclass(frozen=True)
class Shares:
    """How the corrupted samples were classified at the end of an epoch, as fractions of those samples."""

    epoch: int
    phase: str
    sparsity: float
    """Sparsity of the pruned layers."""
    corrupted_true: float
    """Classified as the true class: the wrong label is ignored."""
    corrupted_given: float
    """Classified as the label used in training: the label is memorised."""
    corrupted_neither: float
    """The three add up to more than 1 if a drawn label equals the true one: such a sample counts as both."""


def analyze(subjects: Sequence[Subject], options: Block, workspace: Workspace) -> Findings:
    """The shaded phases are those of the first run. Raises RunError for a run without corrupted labels, or if one of a
    run's models was named."""
    for subject in subjects:
        whole_run_of(subject)
    records = {subject.name: records_of(subject) for subject in subjects}
    runs = {name: shares(each, name) for name, each in records.items()}
    samples = {subject.name: _samples(subject) for subject in subjects}
    return Findings(
        numbers={
            "runs": {
                name: {
                    "samples": samples[name],
                    "phase_ends": [_numbers(at) for at in phase_ends(each)],
                    "epochs": [_numbers(at) for at in each],
                }
                for name, each in runs.items()
            }
        },
        summary=Table(
            ("run", "samples", "dense: true, given", "sparse: true, given"),
            [(name, str(samples[name]), *_shown(each)) for name, each in runs.items()],
        ),
        tables={
            "": Table(
                ("run", *_COLUMNS),
                [(name, *_numbers(at).values()) for name, each in runs.items() for at in each],
            )
        },
        figures={"": draw(runs, next(iter(records.values())))},
    )


def missing(runs: Sequence[Forecast], options: Block) -> list[str]:
    return [_labels_are_right(run.name) for run in runs if run.recipe.images.corrupt_labels is None]


def _labels_are_right(run: str) -> str:
    return f"{run} has no corrupted labels; train with --set data.corrupt_labels.count=1000"


def _samples(subject: Subject) -> int | None:
    block = subject.recipe.images.corrupt_labels
    return block.count if block else None


def shares(records: Records, name: str = "the run") -> list[Shares]:
    """The shares at each epoch of a run's records. name: what errors call the run.

    Epochs without validation are left out. Raises RunError if none remains, or if the run was trained without corrupted
    labels.
    """
    if any(not {"corrupted_true", "corrupted_given"} <= record.keys() for record in records):
        raise RunError(_labels_are_right(name))
    validated = [record for record in records if None not in (record["corrupted_true"], record["corrupted_given"])]
    if not validated:
        raise RunError(f"{name} has no validated epoch yet; resume it, or train with a smaller eval_every")
    # acdc 0.1.0 did not record this key, and never drew the true label
    neither = [1 - record["corrupted_true"] - record["corrupted_given"] for record in validated]
    return [
        Shares(**{key: record.get(key, rest) for key in _COLUMNS})
        for record, rest in zip(validated, neither, strict=True)
    ]


def phase_ends(epochs: Sequence[Shares]) -> list[Shares]:
    """The last epoch of each phase; the latest phase may be unfinished."""
    ends = {end - 1 for _, _, end in phases([asdict(at) for at in epochs])}
    return [at for at in epochs if at.epoch in ends]


def draw(runs: Mapping[str, Sequence[Shares]], shaded: Records) -> Figure:
    """Both shares over epochs, of runs by their names. shaded: the records that provide the grey sparse phases."""
    figure = plotting.new(7, 6)
    true, given = panels = figure.subplots(2, sharex=True)
    for panel in panels:
        shade(panel, shaded, named=panel is true)
    for (name, epochs), style in zip(runs.items(), plotting.styles(), strict=False):
        trained = [at.epoch + 1 for at in epochs]
        style["markevery"] = -(-len(epochs) // _MARKERS)
        true.plot(trained, [100 * at.corrupted_true for at in epochs], label=name, **style)
        given.plot(trained, [100 * at.corrupted_given for at in epochs], **style)
    true.set(ylabel="classified as the true class (%)", title="training samples with a wrong label")
    given.set(ylabel="classified as the wrong label (%)", xlabel="epochs trained", xlim=(0, None))
    true.legend(loc="best", fontsize=8)
    figure.align_ylabels()
    for panel in panels:
        panel.set_ylim(0, None)
        panel.grid(axis="y", alpha=0.3)
    return figure


def _numbers(at: Shares) -> dict[str, Any]:
    return {key: getattr(at, key) for key in _COLUMNS}


def _shown(epochs: Sequence[Shares]) -> tuple[str, ...]:
    """Both shares at the end of the last dense and the last sparse phase."""
    ends = {at.phase: at for at in phase_ends(epochs)}
    return tuple(
        f"{ends[phase].corrupted_true:.1%}, {ends[phase].corrupted_given:.1%}" if phase in ends else "–"
        for phase in ("dense", "sparse")
    )
