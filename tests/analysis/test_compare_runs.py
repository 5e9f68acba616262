"""Runs side by side: what differs, what came out, and whether seeds alone explain it."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from command import Acdc
from hypothesis import example, given
from hypothesis import strategies as st

from acdc_cli.analysis.compare import Group, Known, _findings, against_first, differing, grouped
from acdc_cli.errors import RunError
from acdc_cli.models.tensors import load_tensors
from acdc_cli.recipe.flat import flat
from acdc_cli.recipe.kinds import measures_of
from acdc_cli.runs.outcome import Outcome, outcome
from acdc_cli.runs.run_dir import open_run
from acdc_cli.statistics import paired

MULTICLASS = measures_of("multiclass")
VALUES = dict.fromkeys(("val_loss", "entropy", "dense_top1", "sparsity_all", "nonzero", "seconds"), 1.0) | {
    f"{key}_flops_{book}": 1e9 for key in ("inference", "train") for book in ("nominal", "measured")
}


def run(name: str, seed: int, top1: float | None, finished: bool = True, **recipe: Any) -> Known:
    keys = {"epochs": 8, "seed": seed, "optim.lr": 0.1, "task.name": "multiclass", **recipe}
    return Known(name, keys, {}, Outcome(finished, 8 if finished else 3, {**VALUES, "top1": top1}))


# --- the paired test ----------------------------------------------------------------------------


def test_a_paired_test_worked_by_hand() -> None:
    """Differences 1, 2 and 3: mean 2, deviation 1, t = 2 √3, and with two degrees of freedom p = 1 - t / √(2 + t²)."""
    test = paired({0: 2.0, 1: 4.0, 2: 6.0, 9: 0.0}, {2: 3.0, 1: 2.0, 0: 1.0, 7: 5.0})
    t = 2 * math.sqrt(3)
    assert test.seeds == [0, 1, 2]
    assert (test.mean, test.std, test.why_not) == (2, 1, None)
    assert test.t == pytest.approx(t)
    assert test.p == pytest.approx(1 - t / math.sqrt(2 + t**2))
    # the 97.5 % point of that distribution
    assert (test.low, test.high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))


def test_without_two_common_seeds_there_is_no_test_and_it_is_said_why() -> None:
    none, one = paired({0: 1.0}, {1: 2.0}), paired({0: 3.0, 1: 1.0}, {0: 1.0})
    assert (none.mean, none.p, none.why_not) == (None, None, "no seed in common")
    assert (one.mean, one.p, one.why_not) == (2, None, "one seed in common")


def test_equal_differences_have_no_test() -> None:
    # in floats the two differences are not quite the same
    test = paired({0: 0.3, 1: 0.8}, {0: 0.1, 1: 0.6})
    assert (test.t, test.p, test.why_not) == (None, None, "the differences are all equal")
    assert paired({0: 0.0, 1: 0.0}, {0: 0.0, 1: 0.0}).why_not == "the differences are all equal"


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=2, max_size=6))
@example([(0.0, 0.0), (0.0, 1e-246)])
def test_exchanging_the_groups_turns_the_signs_and_leaves_p(values: list[tuple[float, float]]) -> None:
    above, below = ({seed: pair[side] for seed, pair in enumerate(values)} for side in (0, 1))
    test, other = paired(above, below), paired(below, above)
    assert test.mean == -other.mean
    assert test.p == pytest.approx(other.p, nan_ok=True)
    if test.t is not None:
        assert test.t == pytest.approx(test.mean / (test.std / math.sqrt(len(values))), rel=1e-6)
        assert test.low <= test.mean <= test.high


# --- groups -------------------------------------------------------------------------------------


def test_runs_that_differ_in_their_seed_alone_are_a_group() -> None:
    runs = [
        run("a-0", 0, 0.9),
        run("b-0", 0, 0.8, **{"optim.lr": 0.2}),
        run(
            "a-1", 1, 0.7, device="cpu", **{"data.path": "elsewhere", "optim.nan_patience": 3, "track.wandb": "online"}
        ),
        run("c-0", 0, 0.8, **{"data.val_images": 10}),
    ]
    groups = grouped(runs)
    assert [[each.name for each in group.runs] for group in groups] == [["a-0", "a-1"], ["b-0"], ["c-0"]]


def test_runs_on_other_data_are_another_group_though_their_recipes_are_alike() -> None:
    """`data.path` bears on nothing, unless another set lies there."""
    runs = [
        replace(run(f"a-{seed}", seed, 0.9, **{"data.path": place}), made_with={"data.fingerprint.train": print_})
        for seed, (place, print_) in enumerate([("/one", "x"), ("/copy", "x"), ("/other", "y")])
    ]
    assert [[each.name for each in group.runs] for group in grouped(runs)] == [["a-0", "a-1"], ["a-2"]]


def test_a_group_is_called_by_what_its_runs_names_share() -> None:
    def name(*runs: str) -> str:
        return grouped([run(each, seed, 0.9) for seed, each in enumerate(runs)])[0].name

    assert name("small-0", "small-1") == "small"
    assert name("sparsity=0.9,seed=0", "sparsity=0.9,seed=1") == "sparsity=0.9"
    assert name("first/demo", "second/demo") == "first/demo"
    assert name("small-0") == "small-0"
    twins = [run("x-0", 0, 0.9), run("x-1", 1, 0.9), run("x-2", 2, 0.9, epochs=9), run("x-3", 3, 0.9, epochs=9)]
    assert [group.name for group in grouped(twins)] == ["x-0", "x-2"]


def test_mean_and_deviation_are_of_the_finished_runs() -> None:
    group = Group("a", [run("a", 0, 0.90), run("b", 1, 0.94), run("c", 2, 0.10, finished=False)])
    assert group.spread("top1") == pytest.approx((0.92, math.sqrt(2 * 0.02**2)))
    assert Group("a", group.runs[:1]).spread("top1") == (0.90, None)
    assert Group("a", group.runs[2:]).spread("top1") == (None, None)


def test_a_single_run_that_has_not_ended_is_shown_as_that() -> None:
    groups = [run("a", 0, 0.9, finished=False), *(run(f"b-{seed}", seed, 0.9, epochs=9) for seed in (0, 1))]
    groups.append(run("b-2", 2, 0.9, finished=False, epochs=9))
    (row,) = [row for row in _findings(groups).summary.rows if row[0] == "finished runs"]
    assert row == ("finished runs", "3 of 8 epochs", "2 of 3")


def test_a_run_without_a_number_leaves_its_group_without_a_mean() -> None:
    """A run that diverged would flatter the others."""
    assert Group("a", [run("a", 0, 0.9), run("b", 1, None)]).spread("top1") == (None, None)


def test_a_seed_that_is_there_twice_is_not_paired() -> None:
    group = Group("a", [run("a", 0, 0.9), run("b", 1, 0.8), run("c", 1, 0.7)])
    assert group.by_seed("top1") == {0: 0.9}


def test_each_group_is_tested_against_the_first() -> None:
    runs = [run(f"{lr}-{seed}", seed, lr + seed * lr, **{"optim.lr": lr}) for lr in (0.1, 0.2, 0.4) for seed in (0, 1)]
    tests = [test for test in against_first(grouped(runs)) if test.measure == "top1"]
    assert [(test.group, test.result.mean) for test in tests] == [
        ("0.2", pytest.approx(0.15)),
        ("0.4", pytest.approx(0.45)),
    ]


def test_differing_keys_are_told_with_every_runs_value() -> None:
    blocks = {"a": {"lr": 0.1, "epochs": 8, "target": 0.9}, "b": {"lr": 0.1, "epochs": 16}}
    assert differing(blocks) == {"epochs": {"a": 8, "b": 16}, "target": {"a": 0.9, "b": None}}
    assert flat({"optim": {"schedule": {"end": 0}}, "seed": 1}) == {"optim.schedule.end": 0, "seed": 1}


# --- what a run directory holds -----------------------------------------------------------------


def test_a_finished_runs_numbers_are_its_summarys(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    numbers = outcome(open_run(trained), MULTICLASS)
    assert (numbers.finished, numbers.epochs) == (True, 6)
    for key in ("top1", "val_loss", "entropy", "sparsity_all"):
        assert numbers.values[key] == summary["sparse"][key]
    assert numbers.values["dense_top1"] == summary["dense"]["top1"]
    assert numbers.values["train_flops_nominal"] == summary["cost"]["nominal"]["train_flops"]
    assert numbers.values["inference_flops_measured"] == summary["cost"]["measured"]["inference_flops"]
    assert numbers.values["seconds"] == summary["seconds"]
    assert outcome(open_run(trained), MULTICLASS, "dense").values["top1"] == summary["dense"]["top1"]


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_nonzero_weights_are_those_in_the_file(trained: Path, kind: Any) -> None:
    tensors, _ = load_tensors(trained / f"{kind}.safetensors")
    layers = json.loads((trained / "summary.json").read_text())[kind]["layers"]
    expected = sum(int(torch.count_nonzero(tensors[f"{layer}.weight"])) for layer in layers)
    assert outcome(open_run(trained), MULTICLASS, kind).values["nonzero"] == expected > 0


@pytest.fixture
def unfinished(trained: Path, tmp_path: Path) -> Path:
    """Four of six epochs, the last of them sparse; no weights were kept."""
    copy = tmp_path / "broken-off"
    copy.mkdir()
    for name in ("resolved.yaml", "recipe.yaml", "provenance.json"):
        shutil.copy(trained / name, copy)
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    (copy / "metrics.jsonl").write_text("\n".join(lines[:4]) + "\n")
    return copy


def test_an_unfinished_runs_numbers_are_those_of_its_last_epochs(unfinished: Path) -> None:
    records = open_run(unfinished).records()
    numbers = outcome(open_run(unfinished), MULTICLASS)
    assert (numbers.finished, numbers.epochs) == (False, 4)
    assert (numbers.values["top1"], numbers.values["dense_top1"]) == (records[3]["top1"], records[2]["top1"])
    assert numbers.values["nonzero"] is None
    assert numbers.values["seconds"] == pytest.approx(sum(record["seconds"] for record in records))


def test_a_run_whose_first_epoch_goes_on_has_no_numbers(unfinished: Path) -> None:
    (unfinished / "metrics.jsonl").unlink()
    numbers = outcome(open_run(unfinished), MULTICLASS)
    assert (numbers.epochs, numbers.values["top1"], numbers.values["sparse_top1"]) == (0, None, None)


def test_a_damaged_summary_is_named(unfinished: Path) -> None:
    (unfinished / "summary.json").write_text('{"name": ')
    with pytest.raises(RunError, match=r"summary.json is damaged"):
        outcome(open_run(unfinished), MULTICLASS)


# --- the command --------------------------------------------------------------------------------


def test_runs_are_compared_from_the_command_line(
    trained: Path, other: Path, unfinished: Path, tmp_path: Path, acdc: Acdc
) -> None:
    out = tmp_path / "out"
    result = acdc("analyze", "compare", trained, other, unfinished, "--out", out)
    assert result.exit_code == 0, result.output
    (file,) = out.glob("*.json")
    results = json.loads(file.read_text())["results"]
    tops = [json.loads((each / "summary.json").read_text())["sparse"]["top1"] for each in (trained, other)]
    # the unfinished one, a copy of the first, has the same recipe
    (group,) = results["groups"]
    assert (group["runs"], group["finished"]) == (3, 2)
    assert (group["top1_mean"], group["top1_std"]) == pytest.approx((fmean(tops), stdev(tops)))
    assert [each["state"] for each in results["runs"]] == ["finished", "finished", "4 of 6 epochs"]
    assert results["runs"][1]["top1_minus_first"] == pytest.approx(tops[1] - tops[0])
    assert results["recipe_differences"] == {"seed": {"small-0": 0, "small-1": 1, "broken-off": 0}}
    assert "2 of 3" in result.stdout
    with file.with_suffix(".csv").open() as rows:
        assert [row["run"] for row in csv.DictReader(rows)] == ["small-0", "small-1", "broken-off"]
    assert {path.suffix for path in out.iterdir()} == {".json", ".csv", ".png", ".svg"}


def test_a_file_and_a_run_alone_are_refused(trained: Path, tmp_path: Path, acdc: Acdc) -> None:
    result = acdc("analyze", "compare", trained, trained / "sparse.safetensors", "--out", tmp_path)
    assert result.exit_code == 2
    assert "is a file with weights" in result.stderr
    result = acdc("analyze", "compare", trained, "--out", tmp_path)
    assert result.exit_code == 2
    assert "at least two runs" in result.stderr


@pytest.mark.parametrize("count", [2, 3, 4, 12])
def test_the_table_has_a_column_or_a_row_for_each_group(count: int) -> None:
    """Numbers are whole in 80 columns; long names are broken."""
    from rich.console import Console
    from rich.table import Table

    runs = [
        run(f"sparsity=0.9,epochs={length},seed={seed}", seed, 0.98 + seed * length / 1000, epochs=length)
        for length in range(1, count + 1)
        for seed in (0, 1)
    ]
    summary = _findings(runs).summary
    assert max(len(summary.columns) - 1, len(summary.rows)) >= count
    grid = Table(box=None, pad_edge=False)
    for column in summary.columns:
        grid.add_column(column, overflow="fold")
    for row in summary.rows:
        grid.add_row(*row)
    console = Console(width=80, record=True, file=StringIO())
    console.print(grid)
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("98.05 ± 0.07") == 1
    assert shown.count(" ± ") >= count


@pytest.mark.parametrize("asked", [("--set", "optim.lr=0.07"), ("--data", "cifar10")])
def test_recipes_are_compared_as_the_runs_had_them(
    acdc: Acdc, trained: Path, other: Path, tmp_path: Path, asked: tuple[str, str]
) -> None:
    result = acdc("analyze", "compare", trained, other, *asked, "--out", tmp_path)
    assert result.exit_code == 2
    assert "leave out --set and --data" in " ".join(result.stderr.split())
