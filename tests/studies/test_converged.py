"""`until_converged`: when a length is doubled, worked by hand, and that the budget ends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from acdc_cli.statistics import rises
from acdc_cli.studies.converged import Lengthening, as_asked, longer, next_length, overstepped
from acdc_cli.studies.grid import Cell
from acdc_cli.studies.run_queue import RunQueue


def cell(sparsity: str, epochs: int, seed: int) -> Cell:
    axes: Mapping[str, str | int | float] = {"sparsity": sparsity, "epochs": epochs, "seed": seed}
    words = tuple(f"{name}={value}" for name, value in axes.items())
    return Cell(key=",".join(words), axes=axes, overrides=(f"sparsity.target={sparsity}", *words[1:]))


def test_accuracy_rises_when_it_gains_more_than_one_standard_deviation() -> None:
    # both have the sample variance (0.01² + 0 + 0.01²) / 2 = 0.01²
    before, last = [0.70, 0.71, 0.72], [0.715, 0.725, 0.735]
    assert rises(before, last)
    assert not rises(before, [value - 0.0051 for value in last])
    assert not rises(last, before)


def test_the_standard_deviation_is_pooled_over_both_lengths() -> None:
    # variances 0.0002 and 0.0018: pooled 0.001, a deviation of 0.0316
    before, last = [0.60, 0.62], [0.612, 0.672]
    assert rises(before, [value + 0.0006 for value in last])
    assert not rises(before, [value - 0.0011 for value in last])


def test_one_seed_is_no_verdict() -> None:
    assert not rises([0.5], [0.9])
    assert not rises([0.5, 0.5], [0.9])


def test_seeds_that_agree_let_any_gain_count() -> None:
    assert rises([0.5, 0.5], [0.51, 0.51])
    assert not rises([0.5, 0.5], [0.5, 0.5])


@pytest.mark.parametrize(
    ("accuracies", "length"),
    [
        ({4: [0.5, 0.51], 8: [0.6, 0.61]}, 16),
        # the last two lengths decide
        ({16: [0.6, 0.61], 4: [0.1, 0.11], 8: [0.6, 0.61]}, None),
        ({4: [0.9, 0.91], 16: [0.7, 0.71], 8: [0.6, 0.61]}, 32),
        ({4: [0.5, 0.51], 8: [0.6, None]}, None),
        ({4: [0.5, None], 8: [0.6, 0.61]}, None),
        ({4: [None, None], 8: [0.5, 0.51], 16: [0.6, 0.61]}, 32),
        ({8: [0.6, 0.61]}, None),
        ({}, None),
    ],
)
def test_the_longest_length_is_doubled_when_it_pays(
    accuracies: Mapping[int, list[float | None]], length: int | None
) -> None:
    assert next_length(accuracies) == length


def test_each_series_is_judged_by_itself_and_gets_all_seeds_of_its_longest_length() -> None:
    rising, level = {4: 0.5, 8: 0.6}, {4: 0.6, 8: 0.6}
    cells = [
        (cell(sparsity, epochs, seed), accuracies[epochs] + seed / 1000)
        for seed in range(2)
        for epochs in (8, 4)
        for sparsity, accuracies in (("0.8", level), ("0.9", rising))
    ]
    assert longer(cells) == [[cell("0.9", 16, 0), cell("0.9", 16, 1)]]


def test_what_follows_from_a_study_is_asked_for_by_it() -> None:
    cells = [cell("0.9", epochs, 0) for epochs in (4, 8)]
    lengths = (2, 4, 8, 12, 16, 24, 32)
    assert [epochs for epochs in lengths if as_asked(cell("0.9", epochs, 0), cells)] == [4, 8, 16, 32]
    assert as_asked(cell("0.8", 16, 0), cells) is None
    assert as_asked(cell("0.9", 16, 1), cells) is None
    assert as_asked(Cell("seed=0", {"seed": 0}, ("seed=0",)), cells) is None


@pytest.mark.parametrize("epochs", [8, 16])
def test_it_is_asked_for_with_the_settings_that_the_study_has_now(epochs: int) -> None:
    now = [
        replace(each, overrides=(*each.overrides, "optim.lr=0.5")) for each in (cell("0.9", 4, 0), cell("0.9", 8, 0))
    ]
    before = cell("0.9", epochs, 0)
    assert as_asked(before, now) == replace(before, overrides=(*before.overrides, "optim.lr=0.5"))


def test_a_budget_is_spent_to_the_last_and_not_beyond() -> None:
    costs = [{"runs": 1, "epochs": 8}, {"runs": 1, "epochs": 4}]
    assert overstepped({"runs": 2, "epochs": 12}, costs) == []
    assert overstepped({"runs": 2, "epochs": 11}, costs) == ["epochs"]
    assert overstepped({"runs": 1, "epochs": 11}, costs) == ["runs", "epochs"]
    assert overstepped({}, costs) == []


@pytest.fixture
def queue(tmp_path: Path) -> RunQueue:
    """Of two series of four runs each."""
    queue = RunQueue(tmp_path / "ledger.sqlite")
    queue.add([cell(sparsity, epochs, seed) for sparsity in ("0.8", "0.9") for epochs in (4, 8) for seed in range(2)])
    return queue


def finish_all(queue: RunQueue) -> None:
    for row in queue.rows():
        row.directory.mkdir(parents=True, exist_ok=True)
        (row.directory / "summary.json").write_text("{}")
    queue.add([])


def lengthening(queue: RunQueue, misfit: str | None = None, **limits: float) -> Lengthening:
    """Of a study whose accuracy rises with the length for ever, and a little with the seed."""
    return Lengthening(
        queue,
        limits,
        accuracy=lambda row: float(row.cell.axes["epochs"]) + float(row.cell.axes["seed"]) / 10,
        cost=lambda cell: {"runs": 1, "epochs": float(cell.axes["epochs"])},
        misfit=lambda cell: misfit,
    )


def test_lengths_are_doubled_round_by_round_until_the_budget_is_spent(queue: RunQueue) -> None:
    # 48 epochs in the grid; 64 more for both series at 16 epochs; 64 more for one of them at 32
    lengthen = lengthening(queue, epochs=48 + 64 + 64)
    assert lengthen() == []
    finish_all(queue)
    assert [said.split(" ")[0] for said in lengthen()] == [cell(s, 16, n).key for s in ("0.8", "0.9") for n in range(2)]
    assert lengthen() == []
    finish_all(queue)
    *added, refused = lengthen()
    assert [said.split(" ")[0] for said in added] == [cell("0.8", 32, seed).key for seed in range(2)]
    assert refused.startswith(cell("0.9", 32, 0).key)
    assert refused.endswith("they would exceed the budget of epochs")
    assert lengthen() == []
    finish_all(queue)
    assert len(lengthen()) == 1
    assert sum(row.cell.axes["epochs"] for row in queue.rows()) == 48 + 64 + 64  # type: ignore[misc]


def test_a_length_that_the_recipe_does_not_allow_is_not_added(queue: RunQueue) -> None:
    finish_all(queue)
    said = lengthening(queue, misfit="the phases do not fit")()
    assert len(said) == 2
    assert all(text.endswith(": the phases do not fit") for text in said)
    assert len(queue.rows()) == 8


def test_who_lengthens_at_the_same_time_adds_nothing_twice(queue: RunQueue) -> None:
    finish_all(queue)
    assert len(lengthening(queue, runs=12)()) == 4
    assert lengthening(queue, runs=12)() == []
    assert len(queue.rows()) == 12
