"""A task whose headline is perplexity: the less, the better, and neither a share nor in any unit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from epoch import recorded
from made import Made, in_memory, study

import acdc_cli.tasks
from acdc_cli.analysis import compare, curves
from acdc_cli.jobs import bench_run, prune_findings, training_run
from acdc_cli.jobs.pruned_recipe import Asked
from acdc_cli.quantities import ACCURACY, Measures, Quantity
from acdc_cli.recipe.blocks.images import ImagesBlock
from acdc_cli.recipe.kinds import measures_of
from acdc_cli.recipe.load import load, resolved_yaml
from acdc_cli.runs import run_table
from acdc_cli.runs.outcome import Outcome
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.studies import next_steps
from acdc_cli.studies.advice import advise, lengths, rule
from acdc_cli.studies.converged import next_length, still_improving
from acdc_cli.studies.report import charts, tables
from acdc_cli.studies.report.write import report
from acdc_cli.studies.results import Run
from acdc_cli.studies.summary import Summary, accuracy_and_cost, front_of, summarise
from acdc_cli.studies.watch import live_lines
from acdc_cli.studies.watch.state import watched_runs
from acdc_cli.training.progress import print_epoch, print_header

PERPLEXITY = Quantity("perplexity", "perplexity", "ppl", "", "less")
BITS = Quantity("bpc", "bits per character", "bpc", "bits", "less")
TASK = """
from dataclasses import replace
from acdc_cli.quantities import Quantity
from acdc_cli.tasks import multiclass

PERPLEXITY = Quantity("perplexity", "perplexity", "ppl", "", "less")

class Task(multiclass.Task):
    measures = replace(multiclass.Task.measures, headline=PERPLEXITY, more=())
    names = (*multiclass.Task.names, "perplexity")
"""


@pytest.fixture(autouse=True)
def _a_task_of_perplexity(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "perplexing.py").write_text(TASK)
    acdc_cli.tasks.__path__.append(str(folder))
    yield
    acdc_cli.tasks.__path__.remove(str(folder))


def run(made: Made, *perplexities: float) -> Run:
    """The last epochs have these perplexities, those before have 99."""
    known = in_memory(made)
    values = [99.0] * (made.epochs - len(perplexities)) + list(perplexities)
    records = [record | {"perplexity": value} for record, value in zip(known.records, values, strict=True)]
    assert known.recipe
    return replace(known, recipe={**known.recipe, "task": {"name": "perplexing"}}, records=records)


def of(sparsity: str | float, epochs: int, *perplexities: float, loss: float = 0.1, flops: int = 1000) -> list[Run]:
    """One run per seed."""
    return [
        run(Made(sparsity, epochs, seed, loss=loss + seed / 1000, entropy=2 * loss + seed / 1000, flops=flops), value)
        for seed, value in enumerate(perplexities)
    ]


@pytest.fixture
def summary() -> Summary:
    """Means at 8 and 16 epochs: 21 and 19.5 of the dense models, 25 and 23 of the sparse ones."""
    dense = [*of("dense", 8, 20.0, 22.0, flops=800), *of("dense", 16, 19.0, 20.0, flops=1600)]
    sparse = of(0.9, 8, 24.0, 26.0, loss=0.2, flops=400), of(0.9, 16, 22.5, 23.5, loss=0.15, flops=900)
    return summarise("study", [*dense, *sparse[0], *sparse[1]])


def test_the_better_of_two_values_is_the_smaller() -> None:
    assert PERPLEXITY.best([21.0, 19.5, 30.0]) == 19.5
    assert PERPLEXITY.gain(19.5, 21.0) == 1.5
    assert ACCURACY.gain(0.75, 0.5) == 0.25
    assert PERPLEXITY.rank(1e9) > PERPLEXITY.rank(None)


def test_values_and_labels_have_the_unit_once_and_no_empty_parentheses() -> None:
    matthews = Quantity("mcc", "Matthews correlation", "MCC", "")
    shown = [(each.head, each.axis, each.spelt(value)) for each, value in ((PERPLEXITY, 21.5), (BITS, 1.25))]
    assert shown == [
        ("perplexity", "perplexity", "21.500"),
        ("bits per character", "bits per character", "1.2500 bits"),
    ]
    assert Quantity("length", "code length", "length", "bits", "less").axis == "code length (bits)"
    assert (matthews.spelt(-0.25), matthews.best([-0.25, 0.5])) == ("-0.250", 0.5)


def test_the_best_model_has_the_lowest_value(summary: Summary) -> None:
    dense, sparse = summary.series
    assert [series.best.x for series in (dense, sparse) if series.best] == [16, 16]
    assert summary.best_dense is dense.groups[1]
    assert front_of(accuracy_and_cost(summary.groups), PERPLEXITY) == [
        (sparse.name, 8),
        (dense.name, 8),
        (dense.name, 16),
    ]


def test_the_best_epoch_has_the_lowest_value() -> None:
    assert run(Made(0.9, 4, 0), 30.0, 18.0, 21.0).best["epoch"] == 2


def test_the_tables_mark_the_lowest_mean_and_worse_models_have_negative_differences(summary: Summary) -> None:
    last, against, best = tables.last_epoch(summary), tables.against_dense(summary), tables.best_epoch(summary)
    assert [row[3].text for row in last.rows if row[3].marked] == ["19.500 ± 0.707", "23.000 ± 0.707"]
    assert "the epochs with the lowest mean perplexity of each series" in last.about
    assert [column.name for column in against.columns][3:] == [
        "P: perplexity",
        "D: dense perplexity",
        "D - P",
        "100 (D - P) / D, %",
    ]
    # (21 - 25) / 21 and (19.5 - 23) / 19.5
    assert [[cell.text for cell in row[3:]] for row in against.rows] == [
        ["25.000", "21.000", "-4.000", "-19.05"],
        ["23.000", "19.500", "-3.500", "-17.95"],
    ]
    assert "top-1" not in against.about + last.about + best.about
    assert "the epoch with the lowest perplexity" in best.about


def test_advice_calls_a_longer_run_of_lower_perplexity_better(summary: Summary) -> None:
    short, long = advise(summary)
    assert short.reference is summary.series[0].groups[1]
    assert (short.verdict, short.reason) == (
        "under-trained",
        "loss and entropy are above the reference; 16 epochs were better",
    )
    assert long.verdict == "looks under-trained"
    known = lengths(summary.series[1])
    assert known.supported == (16,)
    assert known.note.startswith("16 has the lowest mean perplexity; perplexity still fell from 8 to 16, the longest")
    assert "perplexity is at most one pooled standard deviation above the best" in rule(summary.measures)
    assert "accurate" not in rule(summary.measures)


def test_lengths_double_while_it_falls() -> None:
    falling = [PERPLEXITY.rank(each) for each in (24.0, 26.0)], [PERPLEXITY.rank(each) for each in (20.0, 21.0)]
    assert next_length({8: falling[0], 16: falling[1]}) == 32
    assert next_length({8: falling[1], 16: falling[0]}) is None
    assert still_improving(PERPLEXITY) == "perplexity still falls"


def test_the_figures_show_stored_values_on_an_axis_without_a_unit(summary: Summary) -> None:
    front = charts.pareto(summary)
    assert front is not None
    (axes,) = front.axes
    assert axes.get_ylabel() == "validation perplexity"
    assert list(axes.lines[0].get_ydata()) == [25.0, 21.0, 19.5]
    assert charts.panel(summary, PERPLEXITY).axes[0].get_title() == "validation perplexity"
    record = recorded(0) | {"perplexity": 21.0, "top1": 0.5, "sparsity_all": 0.5, "val_loss": 3.0}
    drawn = curves.draw({"run": [record]}, {"run": PERPLEXITY}).axes[2]
    assert (drawn.get_ylabel(), list(drawn.lines[0].get_ydata())) == ("perplexity", [21.0])
    top1 = measures_of("multiclass").headline
    accuracy_panel = curves.draw({"a": [record], "b": [record]}, {"a": PERPLEXITY, "b": top1}).axes[2]
    assert accuracy_panel.get_ylabel() == "perplexity or top-1 (%)"


def test_curves_of_several_tasks_stand_side_by_side_each_on_its_own_axis() -> None:
    runs = {"a": [run(Made(0.9, 2, 0), 30.0, 20.0)], "b": [in_memory(Made(0.9, 2, 0, top1=0.8))]}
    figure = charts.curves_side_by_side(runs)
    assert figure is not None
    drawn = [(axes.get_ylabel(), list(axes.lines[0].get_ydata())) for axes in figure.axes[:2]]
    assert drawn == [("validation\nperplexity", [30.0, 20.0]), ("validation\ntop-1 (%)", [40.0, 80.0])]


def test_the_report_speaks_of_perplexity(tmp_path: Path) -> None:
    made = [Made(sparsity, 8, 0, overrides=("task.name=perplexing",)) for sparsity in ("dense", 0.9)]
    study(tmp_path, made)
    for each, value in zip(made, (20.0, 25.0), strict=True):
        records = [record | {"perplexity": value} for record in each.records()]
        (tmp_path / "runs" / each.key / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    page = (report(str(tmp_path)).folder / "index.html").read_text()
    for text in (
        "Perplexity, training cross entropy and entropy along",
        "The best\nof each line",
        "Validation perplexity",
        "Perplexity and training cost",
        "cheaper to train and better than",
    ):
        assert text in page
    assert "ccuracy" not in page
    assert "perplexity %" not in page
    assert "perplexity (" not in page


def test_runs_are_compared_in_perplexity() -> None:
    def known(name: str, seed: int, target: float, perplexity: float) -> compare.Known:
        keys = ("val_loss", "entropy", "dense_perplexity", *compare._OF_WEIGHTS)
        recipe = {"task.name": "perplexing", "seed": seed, "epochs": 8, "sparsity.target": target}
        return compare.Known(name, recipe, {}, Outcome(True, 8, dict.fromkeys(keys) | {"perplexity": perplexity}))

    findings = compare._findings([known("a", 0, 0.8, 20.0), known("b", 0, 0.9, 24.5)])
    rows = {row[0]: row[1:] for row in findings.summary.rows}
    assert rows["perplexity"] == ("20.000", "24.500")
    assert rows["  minus the first"] == ("", "+4.500")
    assert findings.figures[""].axes[0].get_xlabel() == "perplexity"


def test_an_epoch_is_a_line_with_the_value_itself(capsys: pytest.CaptureFixture[str]) -> None:
    measures = Measures(PERPLEXITY, measures_of("multiclass").confidence, (BITS,))
    record = recorded(0) | {"perplexity": 21.456, "bpc": 1.25, "lr": 0.1, "resolution": 8, "images_per_second": 1.0}
    record |= {"val_loss": 3.0, "entropy": 2.0, "sparsity_all": 0.5}
    print_header(measures, ImagesBlock)
    print_epoch(record, measures, ImagesBlock)
    legend, heads, line = capsys.readouterr().err.splitlines()
    assert legend.endswith("bpc in bits; zeros (of pruned layers, of all) in %")
    cells = dict(zip(heads.split(), line.split(), strict=False))
    assert (cells["ppl"], cells["bpc"]) == ("21.46", "1.250")


@pytest.mark.parametrize(
    ("loss", "shown"),
    [(9.9996, "10.00"), (999.94, "999.9"), (12345.0, "1e4"), (-0.5, "-0.50"), (-2e10, "-2e10"), (None, "nan")],
)
def test_a_loss_of_any_size_fits_its_column(loss: float | None, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = recorded(0) | {"lr": 0.1, "resolution": 8, "images_per_second": 1.0, "sparsity_all": 0.5}
    record |= {"train_loss": loss, "val_loss": 3.0, "entropy": 2.0, "top5": 0.9}
    print_epoch(record, measures_of("multiclass"), ImagesBlock)
    line = capsys.readouterr().err.rstrip()
    assert line.split()[4] == shown
    assert len(line) <= 79


def finished(path: Path, task: str, **ends: float) -> RunDir:
    """A finished run with these results of its sparse model."""
    trained = RunDir(path)
    trained.start(
        "extends: demo\n", resolved_yaml(load("demo", [f"task.name={task}"])), {"time": "2026-11-29T12:00:00+00:00"}
    )
    lines = [recorded(epoch) | ends for epoch in range(2)]
    trained.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    trained.finish({"sparse": {**ends, "sparsity": 0.75, "layers": {}}})
    return trained


def test_lists_of_runs_name_what_they_rank_by(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("a", 30.0), ("b", 20.0)):
        finished(tmp_path / "runs" / name, "perplexing", perplexity=value)
    listed = run_table.listed([tmp_path], order="accuracy")
    assert [run.path.name for run in listed] == ["b", "a"]
    assert run_table.columns(listed)[3] == "perplexity"
    assert [row[3] for row in run_table.rows(listed)] == ["20.000", "30.000"]
    assert ("perplexity, zeros", "20.000, 75.00 %") in run_table.facts(listed[0])
    assert "accuracy" not in (shown := listed[0].as_dict())
    assert shown["perplexity"] == 20.0
    lines = live_lines.lines(watched_runs([listed[0].path]), (), 80, 0.0)
    assert any("perplexity 20.000 ·" in line for line in lines)
    assert any(line.startswith("  perplexity ") and line.endswith("20 → 20") for line in lines)
    finished(tmp_path / "runs" / "c", "multiclass", top1=0.5)
    listed = run_table.listed([tmp_path], order="name")
    assert run_table.columns(listed)[3] == "perplexity or accuracy"
    assert [row[3] for row in run_table.rows(listed)] == ["30.000 ppl", "20.000 ppl", "50.00 acc."]
    training_run._conclude(RunDir(tmp_path / "run"), {"sparse": {"perplexity": 21.5}}, PERPLEXITY)
    assert "sparse: perplexity 21.500 in" in " ".join(capsys.readouterr().err.split())


def test_a_sparse_model_lags_if_its_perplexity_is_more_than_a_hundredth_above() -> None:
    ends = {"dense": {"perplexity": 20.0}, "sparse": {"perplexity": 25.0}}
    assert next_steps._lag(ends, PERPLEXITY) == "sparse is 5.000 above dense in perplexity"
    assert next_steps._lag({"dense": ends["sparse"], "sparse": ends["dense"]}, PERPLEXITY) == ""
    assert next_steps._lag({**ends, "sparse": {"perplexity": 20.19}}, PERPLEXITY) == ""


def test_pruning_and_speed_are_drawn_against_the_value_itself() -> None:
    measured = {"loss": 3.0, "entropy": 2.0, "sparsity": 0.5, "sparsity_all": 0.5, "flops": None}
    asked = Asked(Path("run"), method="magnitude", targets=(0.5, 0.9))
    after = [measured | {"perplexity": value} for value in (22.0, 40.0)]
    measures = measures_of("perplexing")
    findings = prune_findings.findings(asked, measures, measured | {"perplexity": 20.0}, after)
    assert [row[1] for row in findings.summary.rows] == ["20.000", "22.000", "40.000"]
    (axes,) = findings.figures[""].axes
    assert (axes.get_ylabel(), list(axes.lines[1].get_ydata())) == ("perplexity", [22.0, 40.0])
    rows = [{"latency_ms": latency, "perplexity": value} for latency, value in ((1.0, 30.0), (2.0, 40.0), (3.0, 20.0))]
    assert [row["latency_ms"] for row in bench_run._pareto(rows, PERPLEXITY)] == [1.0, 3.0]
