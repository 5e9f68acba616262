from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from command import Acdc
from digits import TINY

from acdc_cli.analysis.memorisation import Shares, draw, phase_ends, shares
from acdc_cli.errors import RunError

EPOCHS = [
    ("dense", 0.5, 0.25),
    ("dense", 0.25, 0.5),
    ("sparse", 0.75, 0.125),
    ("sparse", 0.875, 0.0),
    ("dense", 0.0, 1.0),
]
RECORDS: list[dict[str, Any]] = [
    {"epoch": epoch, "phase": phase, "sparsity": 0.9, "corrupted_true": true, "corrupted_given": given, "top1": 0.7}
    for epoch, (phase, true, given) in enumerate(EPOCHS)
]


def test_shares_are_those_of_the_records() -> None:
    epochs = shares(RECORDS)
    assert epochs[2] == Shares(2, "sparse", 0.9, 0.75, 0.125, 0.125)
    assert [at.corrupted_neither for at in epochs] == [0.25, 0.25, 0.125, 0.125, 0.0]


def test_what_is_classified_as_neither_is_as_recorded_where_a_drawn_label_may_be_true() -> None:
    assert [at.corrupted_neither for at in shares([record | {"corrupted_neither": 0.5} for record in RECORDS])] == [
        0.5
    ] * 5


def test_a_run_without_the_option_is_told_of_it() -> None:
    records = [{key: value for key, value in record.items() if "corrupted" not in key} for record in RECORDS]
    with pytest.raises(RunError) as caught:
        shares(records, "run-7")
    assert str(caught.value) == "run-7 has no corrupted labels; train with --set data.corrupt_labels.count=1000"


def test_a_phase_is_judged_by_its_last_epoch() -> None:
    assert [(at.epoch, at.phase) for at in phase_ends(shares(RECORDS))] == [(1, "dense"), (3, "sparse"), (4, "dense")]


def test_epochs_without_validation_are_left_out_and_phases_end_where_they_did() -> None:
    unseen = {"corrupted_true": None, "corrupted_given": None, "top1": None}
    sparing = [record | (unseen if record["epoch"] in (0, 2) else {}) for record in RECORDS]
    assert [at.epoch for at in shares(sparing)] == [1, 3, 4]
    assert phase_ends(shares(sparing)) == phase_ends(shares(RECORDS))
    with pytest.raises(RunError, match="run-7 has no validated epoch yet"):
        shares([record | unseen for record in RECORDS], "run-7")


def test_the_figure_has_a_line_of_each_run_for_either_share() -> None:
    by_epoch = shares(RECORDS)
    figure = draw({"one": by_epoch, "two": by_epoch[:3]}, RECORDS)
    true, given = figure.axes
    lines = [[(list(line.get_xdata()), list(line.get_ydata())) for line in panel.lines] for panel in (true, given)]
    epochs = [1, 2, 3, 4, 5]
    assert lines == [
        [(epochs, [50, 25, 75, 87.5, 0]), (epochs[:3], [50, 25, 75])],
        [(epochs, [25, 50, 12.5, 0, 100]), (epochs[:3], [25, 50, 12.5])],
    ]
    legend = true.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["sparse phase", "one", "two"]
    # of the first run: epochs 2 and 3
    assert [(patch.get_x(), patch.get_width()) for patch in true.patches] == [(2, 2)]
    assert len({line.get_linestyle() for line in true.lines}) == 2


@pytest.fixture(scope="module")
def memorising(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two little runs with 20 and 40 wrong labels: dense in epoch 0, sparse in 1, dense in 2, sparse in 3."""
    from acdc_cli.jobs.training_run import train

    home = tmp_path_factory.mktemp("memorising")
    recipe = home / "small.yaml"
    recipe.write_text(
        f"""extends: demo
name: small
epochs: 4
data: {{name: folder, path: {few_digits}, batch_size: 50, loader: torch, workers: 0, augment: none, {TINY}}}
optim: {{lr: 0.05, schedule: {{warmup_epochs: 0}}}}
sparsity: {{warmup_epochs: 1, sparse_epochs: 1, dense_epochs: 1, last_dense_epochs: 1, last_sparse_epochs: 1}}
"""
    )
    few, many = (
        train(str(recipe), [f"data.corrupt_labels.count={count}"], home / f"wrong-{count}").path for count in (20, 40)
    )
    return few, many


def test_the_analysis_tells_and_draws_several_runs(acdc: Acdc, memorising: tuple[Path, Path], in_tmp: Path) -> None:
    result = acdc("analyze", "memorisation", *memorising, "--out", in_tmp)
    assert result.exit_code == 0, result.output
    table = result.stdout.splitlines()[:3]
    assert all(len(line) <= 80 for line in table)
    assert sorted(path.suffix for path in in_tmp.iterdir()) == [".csv", ".json", ".png", ".svg"]
    runs = json.loads(next(in_tmp.glob("*.json")).read_text())["results"]["runs"]
    rows = list(csv.DictReader(next(in_tmp.glob("*.csv")).read_text().splitlines()))
    for path, samples in zip(memorising, (20, 40), strict=True):
        records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        reported = runs[path.name]
        assert reported["samples"] == samples
        assert [at["epoch"] for at in reported["phase_ends"]] == [0, 1, 2, 3]
        ours = [row for row in rows if row["run"] == path.name]
        for record, at, row in zip(records, reported["epochs"], ours, strict=True):
            for key in ("corrupted_true", "corrupted_given", "corrupted_neither"):
                assert at[key] == float(row[key]) == record[key]
            assert at["corrupted_neither"] == pytest.approx(1 - at["corrupted_true"] - at["corrupted_given"])
    last = [runs[path.name]["epochs"][-1] for path in memorising]
    for at, line in zip(last, table[1:], strict=True):
        assert line.split()[-2:] == [f"{at['corrupted_true']:.1%},", f"{at['corrupted_given']:.1%}"]


def test_a_run_with_true_labels_is_refused_with_the_way_out(
    acdc: Acdc, memorising: tuple[Path, Path], trained: Path, in_tmp: Path
) -> None:
    result = acdc("analyze", "memorisation", memorising[0], trained, "--out", in_tmp)
    assert result.exit_code == 2
    assert f"{trained.name} has no corrupted labels" in " ".join(result.stderr.split())
    assert list(in_tmp.iterdir()) == []
