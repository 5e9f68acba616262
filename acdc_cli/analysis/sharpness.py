"""Sharpness: the largest eigenvalue and the trace of the loss's Hessian on the nonzero weights (P2 M)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from acdc_cli import console
from acdc_cli.analysis import curves
from acdc_cli.analysis.base import plotting
from acdc_cli.analysis.base.batch_norm import batch_statistics
from acdc_cli.analysis.base.evenly import Evenly
from acdc_cli.analysis.base.findings import Findings, Table
from acdc_cli.analysis.base.forecast import Forecast
from acdc_cli.analysis.base.hessian import hessian_times, measured_entries
from acdc_cli.analysis.base.spectrum import Eigenvalue, generator, hutchinson, largest_eigenvalue
from acdc_cli.analysis.base.subject import Loaded, Subject, run_of
from acdc_cli.analysis.base.workspace import UNSAVED, Workspace
from acdc_cli.errors import RunError
from acdc_cli.recipe.blocks.base import Block
from acdc_cli.runs.run_dir import Kept

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PHASES = {"sparse": "0.0", "ramp": "0.6", "dense": "1.0"}
"""Grey levels that fill the markers."""


_UNIT = "largest eigenvalue (nats / weight²)"


class Options(Block):
    images: PositiveInt = 1000
    """Training images that the loss is averaged over, evenly spaced over those in use (`data.images`), unaugmented."""
    batch_size: PositiveInt = 100
    """Largest number of images per batch. It affects memory, but results only with batch_norm=train."""
    batch_norm: Literal["eval", "train"] = "eval"
    """`eval`: normalise by the running statistics, taken as constants. `train`: by each batch's own statistics."""
    parameters: Literal["all", "weights"] = "all"
    """`all`: nonzero conv and linear weights and all biases and batch norm parameters. `weights`: only the nonzero conv
    and linear weights."""
    iterations: PositiveInt = 20
    """Largest number of power iterations."""
    tolerance: PositiveFloat = 1e-3
    """Convergence threshold for the eigenvalue's relative change and for the square of its residual."""
    trace_samples: NonNegativeInt = 10
    """Random vectors for the trace; each costs as much as an iteration. 0 skips the trace."""
    vector_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the random vectors, which are the same for all models of a shape."""
    along: bool = False
    """For a run, measure every model saved along the way instead of the last."""


@dataclass(frozen=True)
class Sharpness:
    largest: Eigenvalue
    dominant: Eigenvalue
    """The eigenvalue of largest modulus: equal to `largest` unless it is negative."""
    trace: float
    trace_error: float
    """Standard error of the mean over the random vectors; NaN for fewer than two."""
    entries: int
    """Number of parameters in the Hessian."""

    def numbers(self) -> dict[str, Any]:
        return {
            "entries": self.entries,
            "largest": self.largest.numbers(),
            "dominant": self.dominant.numbers(),
            "trace": self.trace,
            "trace_standard_error": self.trace_error,
        }


@dataclass(frozen=True)
class _Model:
    """A row of the table."""

    subject: Subject
    kept: Kept | None = None

    @property
    def name(self) -> str:
        return f"{self.subject.name} epoch {self.kept.epoch}, {self.kept.kind}" if self.kept else self.subject.name

    def measured(self, options: Options, workspace: Workspace) -> Sharpness:
        loaded = self.subject.load(self.kept.file if self.kept else None)
        with self.subject.images("train", options.images) as loader:
            return sharpness_of(loaded, Evenly(loader, options.batch_size), options, workspace, self.name)

    def about(self) -> dict[str, Any]:
        epoch = {"epoch": self.kept.epoch, "phase": self.kept.kind} if self.kept else {}
        return {"model": self.name, "subject": self.subject.name, **epoch}


def analyze(subjects: Sequence[Subject], options: Options, workspace: Workspace) -> Findings:
    """Measures each subject, or each model saved along its run. The loss is the recipe's, with label smoothing and
    without weight decay; it is differentiated in float32, whatever the recipe's precision."""
    models = [model for subject in subjects for model in _models(subject, options)]
    sharpness = {model.name: model.measured(options, workspace) for model in models}
    rows = [{**model.about(), **sharpness[model.name].numbers()} for model in models]
    return Findings(
        numbers={
            "loss": "the recipe's, with its label smoothing and without weight decay, in nats",
            "precision": "fp32",
            "models": rows,
        },
        summary=_summary(sharpness),
        tables={"": _table(rows), "iterations": _iterations(sharpness)},
        figures={"": _along(subjects, rows) if options.along else draw(sharpness)},
    )


def missing(runs: Sequence[Forecast], options: Options) -> list[str]:
    return [_none_saved(run.name) for run in runs if options.along and not run.models]


def sharpness_of(
    loaded: Loaded, data: Evenly, options: Options | None = None, workspace: Workspace = UNSAVED, name: str = "model"
) -> Sharpness:
    """Measures a model on these images without changing it. Ignores `options.images` and `options.along`.

    Raises RunError if no weight is nonzero, the curvature is not finite, or a batch is too small for batch statistics.
    """
    options = options or Options()
    mask = measured_entries(loaded.model, loaded.layers, options.parameters)
    entries = int(mask.sum())
    if not entries:
        raise RunError(f"{name}: all its weights are zero, so it has no curvature; name another model")
    if options.batch_norm == "train" and min(data.sizes) < 2:
        raise RunError(f"{name}: batch_norm=train needs at least 2 images per batch; raise batch_size and images")
    product = partial(
        hessian_times,
        loss=lambda images, labels: loaded.task.loss(loaded.forward(images), labels),
        parameters=list(loaded.model.parameters()),
        mask=mask,
        data=data,
    )
    start = torch.randn(mask.shape, generator=generator(options.vector_seed), dtype=torch.float64)
    start = start.to(mask.device) * mask
    loaded.model.eval()
    with batch_statistics(loaded.model) if options.batch_norm == "train" else nullcontext():
        with _shown(f"{name}: eigenvalue", options.iterations * data.steps) as advance:
            shown = partial(product, advance=advance)
            largest, dominant = largest_eigenvalue(shown, start, options.iterations, options.tolerance, workspace, name)
        with _shown(f"{name}: trace", options.trace_samples * data.steps) as advance:
            shown = partial(product, advance=advance)
            trace, error = hutchinson(shown, mask, options.trace_samples, options.vector_seed, workspace, name)
    return Sharpness(largest, dominant, trace, error, entries)


@contextmanager
def _shown(description: str, steps: int) -> Iterator[Callable[[], None]]:
    with console.progress(description) as bar:
        task = bar.add_task(description, total=steps)
        yield lambda: bar.advance(task)


def _models(subject: Subject, options: Options) -> list[_Model]:
    if not options.along:
        return [_Model(subject)]
    kept = [each for each in run_of(subject).kept_models() if subject.kind in (None, each.kind)]
    if not kept:
        raise RunError(_none_saved(subject.name))
    return [_Model(subject, each) for each in kept]


def _none_saved(run: str) -> str:
    return (
        f"{run}: no checkpoints of earlier epochs were saved; train with checkpoint.keep_phases=true or "
        "checkpoint.keep_every=1, or leave out along=true"
    )


def _summary(sharpness: Mapping[str, Sharpness]) -> Table:
    rows = []
    for name, each in sharpness.items():
        rows.append((name, f"{each.entries:,}", *_shown_in_words(each.largest), _trace_in_words(each)))
        if each.dominant is not each.largest:
            rows.append((f"{name}: largest in modulus", "", *_shown_in_words(each.dominant), ""))
    return Table(("model", "entries", "sharpness", "residual", "converged", "trace"), rows)


def _trace_in_words(sharpness: Sharpness) -> str:
    if math.isnan(sharpness.trace):
        return "-"
    error = "" if math.isnan(sharpness.trace_error) else f" ± {float(f'{sharpness.trace_error:.2g}'):g}"
    return f"{sharpness.trace:.4g}{error}"


def _shown_in_words(eigenvalue: Eigenvalue) -> tuple[str, str, str]:
    converged = f"after {len(eigenvalue.history)}" if eigenvalue.converged else "no"
    return f"{eigenvalue.value:.4g}", f"{eigenvalue.residual:.1%}", converged


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = ("model", "subject", "epoch", "phase", "entries", "trace", "trace_standard_error")
    ends = ("value", "residual", "iterations", "converged")
    return Table(
        (*columns, *(f"{which}_{end}" for which in ("largest", "dominant") for end in ends)),
        [
            [
                *(row.get(key) for key in columns),
                *(row[which][end] for which in ("largest", "dominant") for end in ends),
            ]
            for row in rows
        ],
    )


def _iterations(sharpness: Mapping[str, Sharpness]) -> Table:
    rows = [
        (name, which, number, value)
        for name, each in sharpness.items()
        for which, eigenvalue in (("largest", each.largest), ("dominant", each.dominant))
        for number, value in enumerate(eigenvalue.history, 1)
    ]
    return Table(("model", "eigenvalue", "iteration", "value"), rows)


def draw(sharpness: Mapping[str, Sharpness]) -> Figure:
    """Left: the eigenvalue of each model. Right: its convergence, in the same colour and marker."""
    figure = plotting.new(8.5, 3 + 0.25 * len(sharpness))
    values, iterations = figure.subplots(1, 2)
    for row, ((name, each), style) in enumerate(zip(sharpness.items(), plotting.styles(), strict=False)):
        # a marker at 0 is drawn whole, over the axis
        values.plot(each.largest.value, row, clip_on=False, **(style | {"linestyle": "", "markersize": 7}))
        iterations.plot(range(1, len(each.largest.history) + 1), each.largest.history, label=name, **style)
    values.set(xlabel=_UNIT, xlim=(min(0, *values.get_xlim()), None), ylim=(len(sharpness) - 0.5, -0.5))
    values.set_yticks(range(len(sharpness)), sharpness)
    iterations.set(xlabel="power iteration", ylabel=_UNIT)
    iterations.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower center", fontsize=8, ncols=2)
    for panel in (values, iterations):
        panel.grid(alpha=0.3)
    return figure


def _along(subjects: Sequence[Subject], rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The largest eigenvalue over the epochs of each run."""
    figure = plotting.new(7, 4)
    panel = figure.subplots()
    if len(subjects) == 1:
        curves.shade(panel, run_of(subjects[0]).records(), named=True)
    for subject, style in zip(subjects, plotting.styles(), strict=False):
        own = [row for row in rows if row["subject"] == subject.name]
        epochs = [row["epoch"] + 1 for row in own]
        values = [row["largest"]["value"] for row in own]
        panel.plot(epochs, values, label=subject.name, **style)
        panel.scatter(epochs, values, c=[_PHASES[row["phase"]] for row in own], edgecolors="black", zorder=3)
    panel.set(xlabel="epochs trained", ylabel=_UNIT, ylim=(min(0, *panel.get_ylim()), None))
    panel.set_title("black: sparse phases, grey: ramps, white: dense phases", fontsize=8)
    panel.legend(fontsize=8)
    panel.grid(axis="y", alpha=0.3)
    return figure
