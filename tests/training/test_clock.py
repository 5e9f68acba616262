"""The clock of learning rate and resolution: the run's own, but for a method that trains several times over."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from mini_trainer import MiniRun

from acdc_cli.recipe.load import load
from acdc_cli.schedule.learning_rate import learning_rate
from acdc_cli.schedule.sizes import sizes

RATES = ["optim.lr=0.09", "optim.schedule={name: linear, warmup_epochs: 1}", "data.val_crop=8", "data.val_resize=8"]
SIZES = "data.resolution=[{since: 0, size: 6}, {since: 0.5, size: 8}]"
LOTTERY = "sparsity={method: lottery, target: 0.75, prune: 0.5, rewind_to: 1, keep_dense: []}"


def trained(folder: Path, *overrides: str) -> tuple[MiniRun, list[float]]:
    """A run under the recipe's clock, and the learning rate of each of its steps; an epoch has 3."""
    recipe = load("demo", [*RATES, SIZES, *overrides])
    block = recipe.as_dict()["sparsity"]
    run = MiniRun(
        folder,
        recipe.epochs,
        block,
        learning_rate=partial(learning_rate, recipe),
        resolution=sizes(recipe).__getitem__,
    )
    rates: list[float] = []
    run.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    run.fit()
    return run, rates


def test_a_run_that_trains_once_has_its_own_clock(tmp_path: Path) -> None:
    run, rates = trained(tmp_path / "run", "epochs=4", "sparsity={method: dense}")
    down = [0.09 * left / 9 for left in range(9, 0, -1)]
    assert rates == pytest.approx([0, 0.03, 0.06, *down])
    assert [record["resolution"] for record in run.directory.records()] == [6, 6, 8, 8]


def test_each_round_of_a_lottery_has_the_learning_rates_and_the_resolutions_of_a_run_of_its_length(
    tmp_path: Path,
) -> None:
    # rounds of 4 epochs, of which the second and third start again at epoch 1, at the peak
    run, rates = trained(tmp_path / "run", "epochs=10", LOTTERY)
    down = [0.09 * left / 9 for left in range(9, 0, -1)]
    assert rates == pytest.approx([0, 0.03, 0.06, *down, *down, *down])
    records = run.directory.records()
    assert [record["phase"] for record in records] == ["dense"] * 4 + ["ramp"] * 3 + ["sparse"] * 3
    assert [record["lr"] for record in records] == pytest.approx([0.06, *[0.07, 0.04, 0.01] * 3])
    assert [record["resolution"] for record in records] == [6, 6, 8, 8, 6, 8, 8, 6, 8, 8]


def test_the_trainer_restores_the_whole_model_in_place_and_forgets_the_optimisers_state(tmp_path: Path) -> None:
    run = MiniRun(tmp_path / "run", 1, {"method": "dense"})
    model, optimizer = run.model, run.optimizer
    places = [value.data_ptr() for value in model.state_dict().values()]
    before = run.sparsifier.training.snapshot()
    assert before.keys() == model.state_dict().keys()
    run.fit()
    assert not any(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(state["momentum_buffer"].any() for state in optimizer.state.values())
    run.sparsifier.training.restore(before)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert [value.data_ptr() for value in model.state_dict().values()] == places
    assert len(optimizer.state) == len(list(model.parameters()))
    assert not any(state["momentum_buffer"].any() for state in optimizer.state.values())
