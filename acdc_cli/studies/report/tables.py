"""A study's tables; the CSV, Markdown and HTML versions contain the same values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acdc_cli import console, files
from acdc_cli.quantities import Quantity
from acdc_cli.statistics import Spread
from acdc_cli.studies.advice import advise, lengths, named, rule
from acdc_cli.studies.report.charts import quantities
from acdc_cli.studies.results import Run
from acdc_cli.studies.summary import Group, Summary, accuracy_and_cost, front_of, summarise


@dataclass(frozen=True)
class Cell:
    text: str
    value: str | int | float | None = None
    """Sort key and CSV value; None: the text."""
    more: tuple[str | int | float, ...] = ()
    """Values of further CSV columns."""
    marked: bool = False

    @property
    def key(self) -> str | int | float:
        return self.text if self.value is None else self.value


@dataclass(frozen=True)
class Column:
    name: str
    csv: tuple[str, ...]
    """Names of the column in the CSV file."""


@dataclass(frozen=True)
class Table:
    name: str
    """Name of its CSV file."""
    title: str
    about: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def csv(self) -> str:
        """Numbers in full precision; means and deviations in separate columns."""
        head = [name for column in self.columns for name in column.csv]
        return files.csv_text(
            [head, *([value for cell in row for value in (cell.key, *cell.more)] for row in self.rows)]
        )

    def markdown(self) -> str:
        heads = [inert(column.name) for column in self.columns]
        lines = [heads, ["--:" if self.numeric(i) else "---" for i in range(len(heads))]]
        lines += [[f"**{inert(cell.text)}**" if cell.marked else inert(cell.text) for cell in row] for row in self.rows]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def numeric(self, column: int) -> bool:
        return all(not isinstance(row[column].key, str) or row[column].text == _NONE for row in self.rows)


_NONE = "–"


def last_epoch(summary: Summary) -> Table:
    """The models at the end of the runs."""
    headline, confidence = summary.measures.headline, summary.measures.confidence
    front = set(front_of(accuracy_and_cost(summary.groups), headline))
    best = {(series.best.series, series.best.x) for series in summary.series if series.best}
    rows = []
    for group in summary.groups:
        at = group.series, group.x
        rows.append(
            (
                *_names(summary, group, at in best),
                _spread(group.accuracy, headline.scale, headline.digits, at in best),
                _spread(group.last("train_cross_entropy"), 1, 4),
                _spread(group.confidence, confidence.scale, confidence.digits),
                _spread(group.last("val_loss"), 1, 4),
                _mean(group.last("sparsity"), 100, "{:.2f}"),
                _mean(group.last("sparsity_all"), 100, "{:.2f}"),
                _flops(group.cost("train_flops")),
                _flops(group.cost("inference_flops")),
                _said("best", at in best),
                _said("on it", at in front),
            )
        )
    columns = (
        *_heads(summary),
        _mean_and_std(headline.head),
        _mean_and_std("training cross entropy"),
        _mean_and_std(confidence.head),
        _mean_and_std("validation loss"),
        *_ones("zeros % (pruned layers)", "zeros % (all)", "training FLOPs", "inference FLOPs", "best", "Pareto front"),
    )
    about = (
        "The models at the end of the runs: mean and sample standard deviation over seeds. Bold: the "
        f"{summary.along.axis} with the {headline.words.best} mean {headline.name} of each series. "
        f"{_in_nats(headline, confidence)}; FLOPs as measured with the actual weights."
    )
    return Table("last_epoch", "After the last epoch", about, columns, tuple(rows))


def against_dense(summary: Summary) -> Table:
    """How much worse each sparse group is than the best dense one of the same model, data and length; no rows without
    one. Losses are negative."""
    headline = summary.measures.headline
    dense = [group for group in summary.groups if group.dense]
    rows = []
    for group in summary.groups:
        pruned, full = group.accuracy, _same_length(group, dense)
        if pruned is None or full is None or group.dense:
            continue
        gain = headline.gain(pruned.mean, full.mean)
        difference = headline.scale * gain
        names = _names(summary, group, marked=False)
        means = (Cell(headline.shown(each.mean), headline.scale * each.mean) for each in (pruned, full))
        relative = 100 * gain / abs(full.mean) if full.mean else None
        share = Cell(_NONE, "") if relative is None else Cell(f"{relative:+.2f}", relative)
        rows.append((*names, *means, Cell(f"{difference:+.{headline.digits}f}", difference), share))
    minus, points = "P - D" if headline.better == "more" else "D - P", ", points" if headline.unit == "%" else ""
    heads = f"P: {headline.head}", f"D: dense {headline.head}", f"{minus}{points}", f"100 ({minus}) / D, %"
    columns = (*_heads(summary), *_ones(*heads))
    about = (
        f"P: mean {headline.name} of the sparse models after the last epoch, D: that of the dense model trained for as "
        f"long. {_about_differences(headline)}"
    )
    return Table("against_dense", "Against the dense model", about, columns, tuple(rows))


def _about_differences(headline: Quantity) -> str:
    if headline.is_accuracy:
        return "P2's Table D.2 is headed with the second difference and prints the first."
    return "Negative differences: the sparse models are worse."


def _same_length(group: Group, dense: Sequence[Group]) -> Spread | None:
    """The best headline of dense groups with the same model, images and length."""
    if not group.done:
        return None
    alike = [
        spread
        for other in dense
        if other.epochs == group.epochs and other.done[0].images_and_model == group.done[0].images_and_model
        if (spread := other.accuracy)
    ]
    return max(alike, key=lambda spread: group.measures.headline.rank(spread.mean), default=None)


def best_epoch(summary: Summary) -> Table:
    """The best epoch of each run, chosen on validation labels; a separate table, because its numbers are not
    comparable."""
    chosen = [series.best_at_best_epoch for series in summary.series]
    best = {(group.series, group.x) for group in chosen if group}
    headline, confidence = summary.measures.headline, summary.measures.confidence
    rows = [
        (
            *_names(summary, group, (group.series, group.x) in best),
            _spread(group.best_accuracy, headline.scale, headline.digits, (group.series, group.x) in best),
            _spread(group.best("train_cross_entropy"), 1, 4),
            _spread(group.best(confidence.key), confidence.scale, confidence.digits),
            _epochs(group),
            _said("best", (group.series, group.x) in best),
        )
        for group in summary.groups
    ]
    columns = (
        *_heads(summary),
        _mean_and_std(headline.head),
        _mean_and_std("training cross entropy"),
        _mean_and_std(confidence.head),
        *_ones("best epochs", "best"),
    )
    about = (
        f"For each run, the epoch with the {headline.words.best} {headline.name} among those as sparse as the last: "
        "mean and sample standard deviation over seeds. It is chosen on the validation images and therefore "
        "optimistic; do not compare it with the table of last epochs."
    )
    return Table("best_epoch", "At the best epoch", about, columns, tuple(rows))


def advice(summary: Summary) -> Table:
    """The verdict on each sparse group's training length."""
    undecided = summary.measures.confidence.name
    rows = [
        (
            Cell(each.group.series),
            Cell(str(each.group.epochs), each.group.epochs),
            Cell(each.verdict or "no verdict", marked=each.verdict is not None),
            Cell(each.reason),
            Cell(str(len(each.group.done)), len(each.group.done)),
            Cell(named(each.reference) if each.reference else _NONE),
            _distance(each.loss),
            _distance(each.confidence),
        )
        for each in advise(by_length(summary))
    ]
    columns = _ones(
        "series", "epochs", "verdict", "because", "n", "reference", "loss above (std)", f"{undecided} above (std)"
    )
    return Table("advice", "Trained for long enough?", rule(summary.measures), columns, tuple(rows))


def supported(summary: Summary) -> Table:
    rows = [
        (
            Cell(each.series),
            Cell(", ".join(map(str, each.supported)) or "none", marked=bool(each.supported)),
            Cell(each.note),
        )
        for each in map(lengths, by_length(summary).series)
    ]
    columns = _ones("series", "lengths supported (epochs)", "what is known")
    return Table("lengths", "Training lengths that the runs support", "", columns, tuple(rows))


def runs(summary: Summary) -> Table:
    """One row per run, with separate columns for the last and the best epoch."""
    measured = quantities(summary.measures)
    rows = [
        (
            Cell(run.key),
            Cell(_state(run)),
            *_value_cells(run.last, measured),
            _epoch(run),
            *_value_cells(run.best, measured),
            _measured_flops(run),
        )
        if run.done
        else (Cell(run.key), Cell(_state(run)), *(7 * [Cell(_NONE, "")]), _measured_flops(run))
        for run in summary.runs
    ]
    columns = _ones(
        "run",
        "state",
        *(f"last epoch: {each.head}" for each in measured),
        "best epoch",
        *(f"best epoch: {each.head}" for each in measured),
        "training FLOPs",
    )
    return Table("runs", "Every run", "", columns, tuple(rows))


def speed(summary: Summary) -> Table:
    """What `acdc bench` measured."""
    rows = [
        (
            Cell(run.key),
            *(Cell(str(row[key]), row[key]) for key in ("variant", "engine", "batch", "threads")),
            Cell(f"{row['latency_ms']:.2f}", row["latency_ms"]),
            Cell(_NONE, "") if times is None else Cell(f"{times:.2f}", times),
            Cell(_NONE, "") if size is None else Cell(f"{size / 1e6:.2f}", size / 1e6),
        )
        for run in summary.runs
        for row in run.speeds
        for times, size in [(row["speedup_over_own_dense"], row["file_bytes"])]
    ]
    columns = _ones("run", "variant", "engine", "batch", "threads", "latency (ms)", "× dense", "file (MB)")
    about = "Median latency of a batch; how many times faster than the dense model on the same engine."
    return Table("speed", "Speed and size", about, columns, tuple(rows))


def missing(summary: Summary) -> Table:
    rows = [(Cell(run.key), Cell(_state(run)), Cell(" ".join((run.error or "").split()))) for run in summary.missing]
    return Table("missing", "What is missing", "", _ones("run", "state", "error"), tuple(rows))


def by_length(summary: Summary) -> Summary:
    """The same runs with epochs as the horizontal axis."""
    return summary if summary.along.axis == "epochs" else summarise(summary.name, summary.runs, "epochs")


def _state(run: Run) -> str:
    if run.records and not run.done:
        return f"{run.state}, {len(run.records)} of {run.epochs} epochs"
    return run.state


def _heads(summary: Summary) -> tuple[Column, ...]:
    return *_ones("series", summary.along.axis), Column("n", ("n", "n planned"))


def _names(summary: Summary, group: Group, marked: bool) -> tuple[Cell, ...]:
    done, planned = len(group.done), len(group.runs)
    x = f"{group.x:g}" if isinstance(group.x, float) else str(group.x)
    has_none = summary.along.sparsities and group.dense
    return (
        Cell(group.series),
        Cell(_NONE, "") if has_none else Cell(x, group.x, marked=marked),
        Cell(str(done) if done == planned else f"{done} of {planned}", done, (planned,)),
    )


def _ones(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, (name,)) for name in names)


def _mean_and_std(name: str) -> Column:
    return Column(name, (f"{name} mean", f"{name} std"))


def _spread(spread: Spread | None, scale: float, digits: int, marked: bool = False) -> Cell:
    if spread is None:
        return Cell(_NONE, "", ("",))
    mean = f"{scale * spread.mean:.{digits}f}"
    if spread.std is None:
        return Cell(mean, scale * spread.mean, ("",), marked)
    return Cell(f"{mean} ± {scale * spread.std:.{digits}f}", scale * spread.mean, (scale * spread.std,), marked)


def _mean(spread: Spread | None, scale: float, form: str) -> Cell:
    return Cell(_NONE, "") if spread is None else Cell(form.format(scale * spread.mean), scale * spread.mean)


def _said(text: str, holds: bool) -> Cell:
    return Cell(text if holds else "")


def _epochs(group: Group) -> Cell:
    return Cell(", ".join(str(run.best["epoch"] + 1) for run in group.done) or _NONE)


def _distance(value: float | None) -> Cell:
    return Cell(_NONE, "") if value is None else Cell(f"{value:+.1f}", value)


def _in_nats(*quantities: Quantity) -> str:
    """What is in nats, which heads of columns leave out."""
    *others, last = "Losses", *(each.name for each in quantities if each.unit == "nats")
    return f"{', '.join(others)} and {last} in nats" if others else f"{last} in nats"


def _epoch(run: Run) -> Cell:
    number = run.best["epoch"] + 1
    return Cell(str(number), number)


def _value_cells(record: Mapping[str, Any], measured: Sequence[Quantity]) -> list[Cell]:
    # records before acdc 0.2 have no cross entropy
    return [_value(record[each.key], each) if each.key in record else Cell(_NONE, "") for each in measured]


def _value(value: float | None, quantity: Quantity) -> Cell:
    if value is None:
        return Cell("not finite", "")
    return Cell(quantity.shown(value), quantity.scale * value)


def _flops(cost: Spread | None) -> Cell:
    return Cell(_NONE, "") if cost is None else _prefixed(cost.mean)


def _measured_flops(run: Run) -> Cell:
    return Cell(_NONE, "") if run.measured is None else _prefixed(run.measured["train_flops"])


def _prefixed(count: float) -> Cell:
    return Cell(console.with_prefix(count), count)


def inert(text: str) -> str:
    """Text that Markdown shows as it is: no column, tag, link, image or code."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([|\[\]`*\\])", r"\\\1", text)
