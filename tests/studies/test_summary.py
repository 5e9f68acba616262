"""What a study's numbers are, against numpy and against brute force."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import Made, in_memory, study

from acdc_cli.errors import RunError
from acdc_cli.statistics import Spread, distance, pooled_std
from acdc_cli.studies import results
from acdc_cli.studies.results import Run
from acdc_cli.studies.summary import Group, pareto_front, summarise

numbers = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8).map(tuple)


@given(numbers)
def test_mean_and_deviation_are_numpys_of_a_sample(values: tuple[float, ...]) -> None:
    spread = Spread(values)
    assert spread.n == len(values)
    assert spread.mean == pytest.approx(np.mean(values), abs=1e-6)
    assert spread.std == pytest.approx(np.std(values, ddof=1), rel=1e-6, abs=1e-6)


@given(numbers, numbers)
def test_the_pooled_deviation_is_that_around_both_means(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    residuals = np.concatenate([np.subtract(first, np.mean(first)), np.subtract(second, np.mean(second))])
    expected = np.sqrt(np.sum(residuals**2) / (len(residuals) - 2))
    assert pooled_std(Spread(first), Spread(second)) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_one_run_has_no_deviation_and_no_distance_from_others() -> None:
    assert Spread((0.5,)).std is None
    assert pooled_std(Spread((0.5,)), Spread((0.1,))) is None
    assert distance(Spread((0.5,)), Spread((0.1, 0.2))) is None
    assert distance(Spread((0.5, 0.7)), Spread((0.1,))) is None


def test_a_distance_is_in_pooled_deviations() -> None:
    # each has a sample standard deviation of 1
    assert distance(Spread((4.0, 5.0, 6.0)), Spread((1.0, 2.0, 3.0))) == pytest.approx(3)


def test_runs_that_are_all_the_same_have_no_distance() -> None:
    assert distance(Spread((1.0, 1.0)), Spread((2.0, 2.0))) is None


def group(*runs: Made) -> Group:
    return Group("", 0, tuple(map(in_memory, runs)))


def test_a_group_has_the_numbers_of_its_runs_that_are_done() -> None:
    summed = group(Made(0.9, 4, 0, top1=0.8), Made(0.9, 4, 1, top1=0.9), Made(0.9, 4, 2, top1=0.1, done=False, ended=4))
    assert summed.last("top1") == Spread((0.8, 0.9))
    assert not summed.complete


def test_a_loss_that_is_no_number_is_not_left_out_in_silence() -> None:
    assert group(Made(0.9, 4, 0, loss=0.1), Made(0.9, 4, 1, loss=None)).last("train_loss") is None


def test_a_group_without_a_run_that_is_done_has_no_numbers() -> None:
    assert group(Made(0.9, 4, 0, done=False)).last("top1") is None


def with_records(*records: dict[str, float]) -> Run:
    made = Made(0.9, len(records), 0)
    return replace(in_memory(made), records=[old | new for old, new in zip(made.records(), records, strict=True)])


def test_last_and_best_epoch_are_not_mixed() -> None:
    run = with_records({"top1": 0.5, "entropy": 3.0}, {"top1": 0.9, "entropy": 2.0}, {"top1": 0.7, "entropy": 1.0})
    assert (run.last["top1"], run.last["entropy"]) == (0.7, 1.0)
    assert (run.best["top1"], run.best["entropy"]) == (0.9, 2.0)
    summed = Group("", 3, (run,))
    assert (summed.last("entropy"), summed.best("entropy")) == (Spread((1.0,)), Spread((2.0,)))


def test_the_best_epoch_is_none_of_a_denser_model() -> None:
    run = with_records(
        {"top1": 0.8, "mask_sparsity": 0.9}, {"top1": 0.99, "mask_sparsity": 0.0}, {"top1": 0.7, "mask_sparsity": 0.9}
    )
    assert run.best["epoch"] == 0


def test_the_best_epoch_is_the_first_of_several_and_none_without_a_number() -> None:
    run = with_records({"top1": None}, {"top1": 0.8}, {"top1": 0.8})  # type: ignore[dict-item]
    assert run.best["epoch"] == 1


def by_series(*runs: Made, **options: object) -> dict[str, list[object]]:
    summary = summarise("study", list(map(in_memory, runs)), **options)  # type: ignore[arg-type]
    return {series.name: [group.x for group in series.groups] for series in summary.series}


def test_a_line_is_a_sparsity_and_runs_along_the_epochs_in_order() -> None:
    runs = [Made(sparsity, epochs, seed) for sparsity in ("dense", 0.9) for epochs in (8, 4) for seed in (0, 1)]
    assert by_series(*runs) == {"dense": [4, 8], "90 %": [4, 8]}


def test_a_line_is_named_by_what_varies_alone() -> None:
    runs = [Made(0.9, 4, 0), Made(0.9, 8, 0)]
    assert by_series(*runs) == {"90 %": [4, 8]}


def test_every_axis_but_seed_and_epochs_parts_the_lines() -> None:
    runs = [Made(0.9, epochs, 0, axes={"optim.lr": lr}) for epochs in (4, 8) for lr in (0.1, 0.2)]
    assert by_series(*runs) == {"lr 0.1": [4, 8], "lr 0.2": [4, 8]}


def test_not_to_have_an_axis_parts_the_lines_too() -> None:
    runs = [Made(0.9, 4, 0), Made(0.9, 4, 1, axes={"optim.clip_norm": 1.0})]
    assert by_series(*runs) == {"90 %": [4], "90 %, clip_norm 1": [4]}


def test_axes_that_advance_with_the_epochs_part_nothing() -> None:
    runs = [Made(0.9, epochs, 0, axes={"optim.lr": rate}) for epochs, rate in ((4, 0.1), (8, 0.2))]
    assert by_series(*runs, together=[{"epochs", "optim.lr"}]) == {"90 %": [4, 8]}


def test_without_several_lengths_the_first_axis_of_numbers_is_drawn_along() -> None:
    runs = [Made("dense", 4, 0, axes={"method": name, "decay": decay}) for name in ("a", "b") for decay in (1e-4, 1e-3)]
    summary = summarise("study", list(map(in_memory, runs)))
    assert (summary.along.axis, summary.along.values, summary.along.log) == ("decay", (1e-4, 1e-3), True)
    assert [series.name for series in summary.series] == ["a", "b"]


def test_shares_with_zero_among_them_are_drawn_on_an_even_axis() -> None:
    runs = [Made("dense", 4, 0, axes={"share": share}) for share in (0.0, 0.5, 0.8)]
    assert not summarise("study", list(map(in_memory, runs))).along.log


def test_a_line_is_dense_where_all_of_its_runs_are() -> None:
    made = [Made("dense", 4, 0, axes={"share": 0}), Made(0.9, 4, 0, axes={"share": 0.5})]
    (line,) = summarise("s", [in_memory(each) for each in made], "share", [{"share", "sparsity"}]).series
    assert [group.dense for group in line.groups] == [True, False]
    assert not line.dense


def test_the_best_of_a_line_is_the_highest_mean_after_the_last_epoch() -> None:
    tops = {4: (0.7, 0.8), 8: (0.82, 0.84), 16: (0.9, 0.7)}
    runs = [
        in_memory(Made(0.9, epochs, seed, top1=top)) for epochs, two in tops.items() for seed, top in enumerate(two)
    ]
    (series,) = summarise("study", runs).series
    assert series.best is not None
    assert series.best.x == 8


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_the_pareto_front_is_what_no_other_beats(points: list[tuple[int, int]]) -> None:
    def beaten(mine: tuple[int, int]) -> bool:
        return any(cost <= mine[0] and gain >= mine[1] and (cost, gain) != mine for cost, gain in points)

    front = pareto_front({i: (float(cost), float(gain)) for i, (cost, gain) in enumerate(points)})
    assert [points[i] for i in front] == sorted({point for point in points if not beaten(point)})


def test_the_ledgers_runs_are_read_with_what_they_left(tmp_path: Path) -> None:
    folder = study(
        tmp_path / "s", [Made("dense", 2, 0), Made(0.9, 4, 0, done=False, ended=1), Made(0.9, 4, 1, done=False)]
    )
    runs = results.of_study(folder)
    assert [(run.state, len(run.records), run.dense) for run in runs] == [
        ("done", 2, True),
        ("waiting", 1, False),
        ("waiting", 0, False),
    ]


def test_a_summary_that_is_gone_makes_the_run_missing(tmp_path: Path) -> None:
    folder = study(tmp_path / "s", [Made("dense", 2, 0), Made("dense", 2, 1)])
    (folder / "runs" / Made("dense", 2, 1).key / "summary.json").unlink()
    assert [run.key for run in summarise("s", results.of_study(folder)).missing] == [Made("dense", 2, 1).key]


def test_the_runs_of_a_finished_study_are_its_directories(tmp_path: Path) -> None:
    runs = [Made("dense", 2, 0), Made(0.9, 4, 0)]
    folder = study(tmp_path / "s", runs)
    assert results.trained(str(folder)) == [folder / "runs" / run.key for run in runs]
    folder = study(tmp_path / "t", [*runs, Made(0.9, 4, 1, done=False)])
    with pytest.raises(RunError, match=r"1 of 3 runs are unfinished, such as sparsity=0.9,epochs=4,seed=1: acdc sweep"):
        results.trained(str(folder))


def test_runs_of_several_tasks_have_no_common_numbers() -> None:
    labels, texts = in_memory(Made("dense", 2, 0)), in_memory(Made("dense", 2, 1))
    texts = replace(texts, recipe=texts.recipe | {"task": {"name": "causal_lm"}})
    with pytest.raises(RunError, match=f"^{labels.key} and {texts.key} were trained for different tasks"):
        _ = summarise("s", [labels, texts]).measures


def test_axes_that_advance_together_are_lists_of_names(tmp_path: Path) -> None:
    assert results.advancing_together(tmp_path) == []
    (tmp_path / "study.yaml").write_text("zip: [[epochs, 3]]\n")
    with pytest.raises(RunError, match=r"study\.yaml: zip: .*; restore a copy"):
        results.advancing_together(tmp_path)


def test_what_is_no_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a study directory"):
        results.of_study(tmp_path)


def test_a_study_that_has_not_begun_says_so(tmp_path: Path) -> None:
    folder = study(tmp_path / "s", [Made("dense", 2, 0, done=False)])
    with pytest.raises(RunError, match=r"no run of .* has begun yet"):
        results.of_study(folder)


def of_runs(tmp_path: Path, *runs: Made) -> dict[str, list[tuple[int, int]]]:
    """Lines of runs given by their directories: (epochs, runs)."""
    folders = [run.write(tmp_path / str(number)) for number, run in enumerate(runs)]
    summary = summarise("runs", results.of_runs(folders), "epochs")
    return {series.name: [(group.epochs, len(group.runs)) for group in series.groups] for series in summary.series}


def test_runs_are_told_apart_by_their_recipes(tmp_path: Path) -> None:
    runs = [Made(sparsity, epochs, seed) for sparsity in ("dense", 0.9) for epochs in (4, 8) for seed in (0, 1)]
    assert of_runs(tmp_path, *runs) == {"dense": [(4, 2), (8, 2)], "90 %": [(4, 2), (8, 2)]}


def test_runs_with_another_key_are_no_seeds_of_one_another(tmp_path: Path) -> None:
    runs = [Made(0.9, 4, 0), Made(0.9, 4, 1, overrides=("optim.clip_norm=1.0",)), Made("dense", 4, 0)]
    assert of_runs(tmp_path, *runs) == {"90 %": [(4, 1)], "90 %, clip_norm 1": [(4, 1)], "dense": [(4, 1)]}


def every(epochs: int) -> tuple[str]:
    return (f"sparsity.every_epochs={epochs}",)


def test_lengths_of_phases_follow_that_of_the_run(tmp_path: Path) -> None:
    runs = [Made(0.9, 4, 0, overrides=every(1)), Made(0.9, 8, 0, overrides=every(2))]
    assert of_runs(tmp_path, *runs) == {"90 %": [(4, 1), (8, 1)]}


def test_two_lengths_of_phases_at_one_length_part_the_lines(tmp_path: Path) -> None:
    runs = [Made(0.9, 4, 0, overrides=every(1)), Made(0.9, 4, 1, overrides=every(2))]
    assert of_runs(tmp_path, *runs) == {"every_epochs 1": [(4, 1)], "every_epochs 2": [(4, 1)]}
