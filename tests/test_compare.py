"""The study of `make compare`: it leaves no method out, and its table says what its runs said."""

from __future__ import annotations

from typing import Any

import pytest

from acdc_cli.recipe import kinds
from acdc_cli.recipe.load import load
from scripts import compare


@pytest.mark.parametrize("epochs", [8, 32])
def test_every_method_is_trained_at_every_target_for_the_same_epochs(epochs: int) -> None:
    runs = compare.all_runs(compare.NAMES, compare.TARGETS, epochs)
    assert len({run.folder for run in runs}) == len(runs)
    for name in kinds.methods():
        wanted = {None} if name == "dense" else {0.9, 0.95, 0.98}
        assert {(run.target, run.seed) for run in runs if run.name == name} == {
            (t, s) for t in wanted for s in (0, 1, 2)
        }
    for run in runs:
        recipe = load(run.recipe, run.overrides)
        assert (recipe.sparsity.method, recipe.epochs, recipe.seed) == (run.method, epochs, run.seed)
        assert getattr(recipe.sparsity, "target", run.target) == run.target


def record(top1: float, seed: int) -> dict[str, Any]:
    numbers = {"top1": top1, "entropy": 0.5, "sparsity": 0.9, "sparsity_all": 0.8, "seconds": 2.0 * seed}
    return {"method": "gmp", "target": 0.9, "seed": seed, **numbers}


def test_a_row_is_the_mean_and_the_sample_standard_deviation_over_seeds() -> None:
    # deviations -0.1, 0, 0.1: the sample variance is 0.02 / 2
    (row,) = compare.summarise([record(0.7, 0), record(0.8, 1), record(0.9, 2)])
    assert row["seeds"] == 3
    assert row["top1_mean"] == pytest.approx(0.8)
    assert row["top1_std"] == pytest.approx(0.1)
    assert row["seconds_mean"] == 2.0
