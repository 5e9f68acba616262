"""Agreement of two models: equal answers, cross entropy between outputs, confusion where they differ (P1 4).

For one run, the sparse model is compared with the dense one. If checkpoints of several epochs exist, each is also
compared with the latest earlier one of the other kind. For several models, each is compared with the first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from acdc_cli import console, files
from acdc_cli.analysis import curves
from acdc_cli.analysis.base import plotting
from acdc_cli.analysis.base.findings import Findings, Table
from acdc_cli.analysis.base.forecast import Forecast
from acdc_cli.analysis.base.outputs import (
    Agreement,
    Difference,
    Pair,
    Split,
    compare,
    same_images,
)
from acdc_cli.analysis.base.subject import Loaded, Subject, records_of, run_of
from acdc_cli.analysis.base.workspace import UNSAVED, Batches, Workspace
from acdc_cli.errors import CheckpointError, RunError
from acdc_cli.recipe.blocks.base import Block
from acdc_cli.runs.run_dir import Kept
from acdc_cli.tasks.base import registry as tasks
from acdc_cli.tasks.base.abstract_task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHOWN = 3
"""Most frequent differences listed in the summary."""
_LISTED = 100
"""Differences listed in the JSON; the CSV has all of them."""
_DRAWN = 30
"""Largest number of classes in a heat map."""
_NUMBERED = 12
"""Largest number of classes for which the cells of the map show their counts."""


class Options(Block):
    split: Split = "val"
    """Images to evaluate on: `val`, or `train` (prepared as for validation, without augmentation)."""


def analyze(subjects: Sequence[Subject], options: Options, workspace: Workspace) -> Findings:
    """Raises RunError if the only subject is a single file."""
    first, *others = both_of(subjects[0]) if len(subjects) == 1 else subjects
    task = tasks.build(first.recipe.task, first.data.class_names)
    agreements, differences = {}, {}
    for other in others:
        with same_images(first, other, options.split) as images:
            key = f"{first.digest} {first.name} {other.digest} {other.name}"
            description = f"{first.name} and {other.name}"
            agreement, differing = compare(first.load(), other.load(), images, workspace, key, description)
        agreements[other.name], differences[other.name] = agreement, differing
    epochs = _along(subjects[0], options.split, workspace) if len(subjects) == 1 else []
    pairs = [{"a": first.name, "b": name, **asdict(each)} for name, each in agreements.items()]
    named = {name: [_named(task, first.data.classes, each) for each in rows] for name, rows in differences.items()}
    tables = {
        "": _table(pairs),
        "differences": Table(
            ("a", "b", "class_a", "class_b", "images"),
            [(first.name, name, *row) for name, rows in named.items() for row in rows],
        ),
    }
    figures = {"": _drawn(first, differences, task)}
    if epochs:
        records, name = records_of(subjects[0]), task.measures.right_answers.name
        tables["epochs"], figures["epochs"] = _table(epochs), draw_epochs(epochs, records, name)
    numbers = {
        "pairs": [{**pair, "most_frequent_differences": named[pair["b"]][:_LISTED]} for pair in pairs],
        "epochs": epochs,
    }
    return Findings(numbers, _summary(first.name, agreements, named, task.measures.right_answers.name), tables, figures)


def _named(task: Task, outputs: int, difference: Difference) -> tuple[str, str, int]:
    """The two answers in words, and the number of images."""
    by_a, by_b, of, count = difference
    decision, options = task.decisions(outputs)[of], task.options(outputs)
    of_what = f"{decision}: " if decision else ""
    return f"{of_what}{options[by_a]}", f"{of_what}{options[by_b]}", count


def _drawn(first: Subject, differences: Mapping[str, Sequence[Difference]], task: Task) -> Figure:
    """A map of pairs of answers; if there are several decisions, how often each one differs."""
    outputs = first.data.classes
    if len(decisions := task.decisions(outputs)) > 1:
        return draw_decisions(first.name, differences, decisions)
    return draw_differences(first.name, differences, task.options(outputs))


def missing(runs: Sequence[Forecast], options: Options) -> list[str]:
    if len(runs) > 1 or len(runs[0].results) > 1:
        return []
    return [f"{runs[0].name} ends in one model, and agreement compares two; add a run of another recipe"]


def both_of(subject: Subject) -> tuple[Subject, Subject]:
    """The two models of a run: the requested one first, otherwise the sparse one.

    Raises RunError if the subject is a file or has only one model.
    """
    try:
        sparse, dense = subject.of("sparse"), subject.of("dense")
    except CheckpointError as cause:
        raise RunError(
            f"{cause}. Agreement compares two models: name a second run or file after {subject.name}"
        ) from cause
    return (dense, sparse) if subject.kind == "dense" else (sparse, dense)


def partners(kept: Sequence[Kept]) -> list[tuple[Kept, Kept]]:
    """Each saved sparse or dense model paired with the latest earlier one of the other kind, oldest first."""
    latest: dict[str, Kept] = {}
    pairs = []
    for each in sorted(kept, key=lambda each: each.epoch):
        other = latest.get({"sparse": "dense", "dense": "sparse"}.get(each.kind, ""))
        if other is not None:
            pairs.append((each, other))
        latest[each.kind] = each
    return pairs


def along(
    kept: Sequence[Kept], load: Callable[[Path], Loaded], images: Batches[Pair], workspace: Workspace = UNSAVED
) -> list[dict[str, Any]]:
    """For each pair of `partners`: `epoch`, `kind`, `against` (the epoch of the other model) and the fields of
    `Agreement`, where A is the sparse model."""
    rows = []
    for each, other in partners(kept):
        sparse, dense = (each, other) if each.kind == "sparse" else (other, each)
        key = f"{files.sha256(sparse.file)} {files.sha256(dense.file)}"
        description = f"epochs {each.epoch} and {other.epoch}"
        numbers, _ = compare(load(sparse.file), load(dense.file), images, workspace, key, description)
        rows.append({"epoch": each.epoch, "kind": each.kind, "against": other.epoch, **asdict(numbers)})
    return rows


def _along(subject: Subject, split: Split, workspace: Workspace) -> list[dict[str, Any]]:
    kept = run_of(subject).kept_models()
    if not partners(kept):
        console.say(
            f"{subject.name}: too few checkpoints were saved to follow the two models over epochs; train with "
            "checkpoint.keep_every=1 or keep_phases=true"
        )
        return []
    with same_images(subject, subject, split) as images:
        return along(kept, subject.load, images, workspace)


def _summary(
    first: str,
    agreements: Mapping[str, Agreement],
    differences: Mapping[str, Sequence[tuple[str, str, int]]],
    accuracy: str,
) -> Table:
    """One column for each B. differences: with class names.  accuracy: its name in the models' task."""
    shown: dict[str, Callable[[Agreement], str]] = {
        f"{accuracy.removesuffix(' accuracy')} agreement": lambda each: f"{each.agreement:.2%}",
        "H(A, B), nats": lambda each: f"{each.cross_entropy_ab:.4f}",
        "H(B, A), nats": lambda each: f"{each.cross_entropy_ba:.4f}",
        "KL(A‖B), nats": lambda each: f"{each.kl_ab:.4f}",
        "KL(B‖A), nats": lambda each: f"{each.kl_ba:.4f}",
        f"{accuracy} of A": lambda each: f"{each.accuracy_a:.2%}",
        f"{accuracy} of B": lambda each: f"{each.accuracy_b:.2%}",
        "both right": lambda each: str(each.both_right),
        "only A right": lambda each: str(each.only_a_right),
        "only B right": lambda each: str(each.only_b_right),
        "both wrong": lambda each: str(each.both_wrong),
        "McNemar's p": lambda each: "-" if math.isnan(each.mcnemar_p) else f"{each.mcnemar_p:.3g}",
    }
    rows = [(name, *map(text, agreements.values())) for name, text in shown.items()]
    for rank in range(_SHOWN):
        cells = [[f"{a}, {b}: {count}" for a, b, count in each[rank : rank + 1]] for each in differences.values()]
        if any(cells):
            rows.append(("" if rank else "A says, B says: images", *("".join(cell) for cell in cells)))
    return Table((f"A: {first}", *(f"B: {name}" for name in agreements)), rows)


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    return Table(tuple(rows[0]), [tuple(row.values()) for row in rows])


def draw_differences(first: str, by_model: Mapping[str, Sequence[Difference]], names: Sequence[str]) -> Figure:
    """One map for each B, keyed by its name. names: the class names."""
    columns = min(3, len(by_model))
    rows = -(-len(by_model) // columns)
    figure = plotting.new(0.5 + 4.7 * columns, 4 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    largest = max((count for differences in by_model.values() for *_, count in differences), default=1)
    for panel, (name, differences) in zip(panels, by_model.items(), strict=False):
        _map(panel, differences, names, largest)
        panel.set(xlabel=f"class by B: {name}", ylabel=f"class by A: {first}")
    for unused in panels[len(by_model) :]:
        unused.set_axis_off()
    return figure


def draw_decisions(first: str, by_model: Mapping[str, Sequence[Difference]], names: Sequence[str]) -> Figure:
    """How many images each model judges differently from the first, by decision.  names: of the decisions."""
    figure = plotting.new(7, 1.6 + 0.2 * len(names))
    panel = figure.subplots()
    for (name, differences), style in zip(by_model.items(), plotting.styles(), strict=False):
        images = [sum(count for _, _, of, count in differences if of == place) for place in range(len(names))]
        panel.plot(images, range(len(names)), label=name, **{**style, "linestyle": ""})
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.set(xlabel=f"images with another answer than {first}", xlim=(0, None), ylim=(len(names) - 0.5, -0.5))
    panel.grid(axis="x", alpha=0.3)
    panel.legend(fontsize=8)
    return figure


def _map(panel: Axes, differences: Sequence[Difference], names: Sequence[str], largest: int) -> None:
    """Draws the classes with the most differences if there are too many. largest: image count of the darkest cell."""
    images: Counter[int] = Counter(dict.fromkeys(range(len(names)), 0))
    for a, b, _, count in differences:
        images.update({a: count, b: count})
    classes = sorted(each for each, _ in images.most_common(_DRAWN))
    place = {each: at for at, each in enumerate(classes)}
    cells = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for a, b, _, count in differences:
        if a in place and b in place:
            cells[place[a], place[b]] = count
    shown = panel.imshow(cells, cmap="Greys", vmin=0, vmax=largest)
    panel.figure.colorbar(shown, ax=panel, label="images", shrink=0.8, ticks=range(0, largest + 1, -(-largest // 8)))
    labels, size = [names[each] for each in classes], 8 if len(classes) <= _NUMBERED else 5
    panel.set_xticks(range(len(classes)), labels, fontsize=size, rotation=90 if len(max(labels, key=len)) > 2 else 0)
    panel.set_yticks(range(len(classes)), labels, fontsize=size)
    if len(classes) <= _NUMBERED:
        for row, column in np.argwhere(cells):
            colour = "white" if cells[row, column] > largest / 2 else "black"
            panel.text(column, row, str(cells[row, column]), ha="center", va="center", color=colour, fontsize=8)


def draw_epochs(epochs: Sequence[Mapping[str, Any]], records: curves.Records, accuracy: str) -> Figure:
    """epochs: the rows returned by `along`.  accuracy: its name in the models' task."""
    figure = plotting.new(7, 5)
    agreement, entropy = panels = figure.subplots(2, sharex=True)
    for panel in panels:
        curves.shade(panel, records, named=panel is agreement)
        panel.grid(axis="y", alpha=0.3)
    styles = plotting.styles()
    trained = [row["epoch"] + 1 for row in epochs]
    agreement.plot(trained, [100 * row["agreement"] for row in epochs], **next(styles))
    for key, label in (("cross_entropy_ab", "H(sparse, dense)"), ("cross_entropy_ba", "H(dense, sparse)")):
        entropy.plot(trained, [row[key] for row in epochs], label=label, **next(styles))
    agreement.set(ylabel=f"{accuracy.removesuffix(' accuracy')} agreement (%)")
    entropy.set(ylabel="cross entropy (nats)", xlabel="epochs trained", xlim=(0, None))
    plotting.log(entropy, "y")
    for panel in panels:
        panel.legend(fontsize=8)
    return figure
