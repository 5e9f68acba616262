"""Accuracy, false positives and negatives and uncertainty by label and by group of images, with intervals.

What Hooker et al. 2019 and Iofinova et al. 2023 ask of sparse models: who pays for the zeros? For one run, its sparse
model is held against its dense one; several models are held against the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt, model_validator

from acdc_cli.analysis.base import plotting
from acdc_cli.analysis.base.findings import Findings, Table
from acdc_cli.analysis.base.group_file import read_groups
from acdc_cli.analysis.base.judgements import Judgements, judge, require_same_images
from acdc_cli.analysis.base.outputs import Split
from acdc_cli.analysis.base.resampling import Estimate, estimates
from acdc_cli.analysis.base.subject import Subject
from acdc_cli.analysis.base.workspace import Workspace
from acdc_cli.analysis.calibration import measured
from acdc_cli.errors import RunError
from acdc_cli.quantities import Quantity
from acdc_cli.recipe.blocks.base import Block
from acdc_cli.recipe.suggest import did_you_mean
from acdc_cli.tasks.base import registry as tasks
from acdc_cli.tasks.base.abstract_task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RATES = (
    Quantity("false_positive_rate", "false-positive rate", "FPR", "%"),
    Quantity("false_negative_rate", "false-negative rate", "FNR", "%"),
)
_EVERY, _ALL = "all images", "all"
_LISTED = 24
"""Most rows of the summary; the CSV has all of them."""


class Options(Block):
    by: list[str] = []
    """Labels whose images, with and without the label, are groups: `[Male, Young]`; of a multiclass set, classes.
    Default: no label, or every class."""
    file: str | None = None
    """CSV file with a column `index`, the image's position in the split, and a column for each kind of groups."""
    resamples: PositiveInt = 1000
    """Bootstrap samples of a group's images behind each interval."""
    level: float = 0.95
    """Share of the bootstrap samples that an interval holds."""
    bootstrap_seed: NonNegativeInt = 0
    """Seed of the bootstrap samples."""
    split: Split = "val"
    """Images to evaluate on: `val`, or `train` (prepared as for validation, without augmentation)."""

    @model_validator(mode="after")
    def _is_a_share(self) -> Self:
        if not 0 < self.level < 1:
            raise ValueError(f"level: expected a share between 0 and 1, found {self.level:g}")
        return self


@dataclass(frozen=True)
class Row:
    """A model on a group of images."""

    model: str
    group: str
    label: str
    """The label judged; `all`: the mean over labels."""
    images: int
    values: Mapping[str, Estimate]
    """By measure; without those that are undefined, because a group has no such image."""
    differences: Mapping[str, Estimate]
    """Minus the first model's, on the same bootstrap samples; empty for the first model."""


def analyze(subjects: Sequence[Subject], options: Options, workspace: Workspace) -> Findings:
    """Raises RunError if the models were evaluated on different images, and for unknown groups."""
    models = measured(subjects)[::-1] if len(subjects) == 1 else list(subjects)
    first = models[0]
    task = tasks.build(first.recipe.task, first.data.class_names)
    judged = {each.name: judge(each, options.split, workspace) for each in models}
    require_same_images(judged)
    groups = groups_of(judged[first.name], task, first.data.classes, options)
    rows = compare(judged, groups, task.decisions(first.data.classes), options)
    shown = (task.measures.right_answers, *_RATES, task.measures.confidence)
    return _findings(rows, list(judged), shown, options)


def groups_of(judged: Judgements, task: Task, outputs: int, options: Options) -> dict[str, NDArray[np.bool_]]:
    """The images of each group by its name, all images first. Raises RunError for a label that does not exist."""
    named = dict(_by_option(judged, task, outputs))
    decisions, choices = task.decisions(outputs), task.options(outputs)
    several = len(decisions) > 1
    known = decisions if several else choices
    if unknown := [name for name in options.by if name not in known]:
        raise RunError(f"by: the set has no {unknown[0]!r}, only {', '.join(known)}{did_you_mean(unknown[0], known)}")
    wanted = options.by or (() if several or options.file else known)
    groups = {_EVERY: np.ones(len(judged.indices), np.bool_)}
    groups |= {name: members for name, (of, members) in named.items() if of in wanted}
    if options.file:
        groups |= read_groups(options.file, judged.indices)
    return {name: members for name, members in groups.items() if members.any()}


def _by_option(judged: Judgements, task: Task, outputs: int) -> Iterator[tuple[str, tuple[str, NDArray[np.bool_]]]]:
    """(name of a group, (the label or class that it is by, its images))."""
    for place, decision in enumerate(task.decisions(outputs)):
        for number, option in enumerate(task.options(outputs)):
            members = judged.truth[:, place] == number
            yield f"{decision}: {option}" if decision else option, (decision or option, members)


def compare(
    judged: Mapping[str, Judgements],
    groups: Mapping[str, NDArray[np.bool_]],
    decisions: Sequence[str],
    options: Options,
) -> list[Row]:
    """A row for each group, label and model; the same bootstrap samples serve all labels and models."""
    labels = (_ALL, *decisions) if len(decisions) > 1 else (_ALL,)
    rows = []
    for number, (group, members) in enumerate(groups.items()):
        columns = {name: each.of(members) for name, each in judged.items()}
        draws = np.random.default_rng([options.bootstrap_seed, number])
        by_model = estimates(columns, int(members.sum()), options.resamples, options.level, draws)
        for place, label in enumerate(labels):
            for name, parts in by_model.items():
                own, minus = ({key: of for key, each in part.items() if (of := each[place])} for part in parts)
                rows.append(Row(name, group, label, int(members.sum()), own, minus))
    return rows


def _findings(rows: Sequence[Row], models: Sequence[str], shown: Sequence[Quantity], options: Options) -> Findings:
    # under the names of the task, in which the estimates are keyed by role
    measures = dict(zip(("accuracy", *(each.key for each in _RATES), "undecided"), shown, strict=True))
    measures = {role: each for role, each in measures.items() if any(role in row.values for row in rows)}
    return Findings(
        numbers={
            "baseline": models[0],
            "interval": f"percentiles, {options.level:.0%} of {options.resamples} bootstrap samples of the images",
            "rows": [_numbers(row, measures) for row in rows],
        },
        summary=_summary(rows, measures),
        tables={"": _table(rows, measures)},
        figures={"": draw(rows, models, measures)},
    )


def _numbers(row: Row, measures: Mapping[str, Quantity]) -> dict[str, Any]:
    parts = {"": row.values, "minus_first_": row.differences}
    named = {
        f"{prefix}{each.key}": {"value": estimate.value, "low": estimate.low, "high": estimate.high}
        for prefix, part in parts.items()
        for role, each in measures.items()
        if (estimate := part.get(role))
    }
    return {"model": row.model, "group": row.group, "label": row.label, "images": row.images, **named}


def _table(rows: Sequence[Row], measures: Mapping[str, Quantity]) -> Table:
    keys = [f"{prefix}{each.key}" for prefix in ("", "minus_first_") for each in measures.values()]
    columns = ["model", "group", "label", "images", *(f"{key}{end}" for key in keys for end in ("", "_low", "_high"))]
    cells = []
    for row in rows:
        estimated = [part.get(role) for part in (row.values, row.differences) for role in measures]
        numbers = [
            number for each in estimated for number in ((each.value, each.low, each.high) if each else 3 * (None,))
        ]
        cells.append((row.model, row.group, row.label, row.images, *numbers))
    return Table(columns, cells)


def _summary(rows: Sequence[Row], measures: Mapping[str, Quantity]) -> Table:
    """By group, over all labels; with one group, by label."""
    shown = _distinct_rows(rows)
    several = len({row.group for row in shown}) > 1
    cells = []
    for row in shown[:_LISTED]:
        values = [
            each.shown(estimate.value) if (estimate := row.values.get(role)) else "-" for role, each in measures.items()
        ]
        lead = row.differences.get("accuracy")
        change = (f"{100 * lead.value:+.1f}", f"{100 * lead.low:+.1f} {100 * lead.high:+.1f}") if lead else ("", "")
        images = [str(row.images)] if several else []
        cells.append((row.group if several else row.label, row.model, *images, *values, *change))
    heads = [each.short + (" %" if each.unit == "%" else "") for each in measures.values()]
    counted = ["images"] if several else []
    return Table(("group" if several else "label", "model", *counted, *heads, "- 1st", "interval"), cells)


def _distinct_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows over all labels; if all images are the only group, those of each label."""
    groups = {row.group for row in rows}
    return [row for row in rows if row.label == _ALL or len(groups) == 1]


def draw(rows: Sequence[Row], models: Sequence[str], measures: Mapping[str, Quantity]) -> Figure:
    """Each measure of each model with its interval, by group or, with one group, by label."""
    shown = _distinct_rows(rows)
    several = len({row.group for row in shown}) > 1
    places = {
        name: place for place, name in enumerate(dict.fromkeys(row.group if several else row.label for row in shown))
    }
    figure = plotting.new(1.8 + 2 * len(measures), 1.6 + (0.16 + 0.08 * len(models)) * len(places))
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for panel, (role, each) in zip(panels, measures.items(), strict=True):
        for number, (name, style) in enumerate(zip(models, plotting.styles(), strict=False)):
            points = [(row, estimate) for row in shown if row.model == name and (estimate := row.values.get(role))]
            at = [
                places[row.group if several else row.label] + 0.22 * (number - (len(models) - 1) / 2)
                for row, _ in points
            ]
            values = [each.scale * estimate.value for _, estimate in points]
            sides = [
                [each.scale * abs(estimate.value - end(estimate)) for _, estimate in points] for end in (_low, _high)
            ]
            panel.errorbar(values, at, xerr=sides, label=name, capsize=2, **{**style, "linestyle": "", "markersize": 4})
        panel.set(xlabel=each.axis)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(places)), list(places), fontsize=8)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    return figure


def _low(estimate: Estimate) -> float:
    return estimate.low


def _high(estimate: Estimate) -> float:
    return estimate.high
