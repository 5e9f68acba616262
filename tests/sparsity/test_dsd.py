"""DSD: dense, then sparse, then dense again (arXiv 1607.04381)."""

from typing import Any

import pytest
import torch
from by_hand import ByHand

from acdc_cli.recipe.blocks.base import RunSize
from acdc_cli.sparsity.methods.dsd import Config


def config(**keys: Any) -> Config:
    return Config(method="dsd", target=0.5, **keys)


def run_of(epochs: int, **keys: Any) -> ByHand:
    weights = {"a.weight": [[4.0, -1.0], [0.5, -3.0]]}
    return ByHand("dsd", {"target": 0.5} | keys, weights, epochs=epochs, momentum=0.5)


def after(run: ByHand, epoch: int, gradient: float) -> list[float]:
    """Weights after the epoch's one step."""
    run.start(epoch)
    run.step(epoch, gradient)
    return run.values()


def test_weights_are_pruned_once_and_come_back_as_zeros_without_momentum() -> None:
    # dense 0, sparse 1-2, dense 3
    run = run_of(4, sparse_from=1, dense_from=3)
    assert after(run, 0, gradient=1.0) == [3, -2, -0.5, -4]
    assert after(run, 1, gradient=-2.0) == [4.5, 0, 0, -2.5]  # momentum 0.5 · 1 - 2 = -1.5
    with torch.no_grad():
        run.weight[0, 0] = 0.25
    assert after(run, 2, gradient=0.75) == [0.25, 0, 0, -2.5]  # momentum 0.5 · -1.5 + 0.75 = 0
    assert after(run, 3, gradient=-1.0) == [1.25, 1, 1, -1.5]
    assert run.masked.sparsity() == 0


def test_what_lived_keeps_its_momentum_when_the_others_are_freed() -> None:
    run = run_of(2, sparse_from=0, dense_from=1)
    assert after(run, 0, gradient=1.0) == [3, 0, 0, -4]
    assert after(run, 1, gradient=0.0) == [2.5, 0, 0, -4.5]


@pytest.mark.parametrize(
    ("keys", "kinds", "densities"),
    [
        ({}, [("dense", 0, 4), ("sparse", 4, 6), ("dense", 6, 8)], [1.0] * 4 + [0.5] * 2 + [1.0] * 2),
        ({"sparse_from": 0, "dense_from": 7}, [("sparse", 0, 7), ("dense", 7, 8)], [0.5] * 7 + [1.0]),
    ],
)
def test_the_phases_are_dense_sparse_dense(
    keys: dict[str, Any], kinds: list[tuple[str, int, int]], densities: list[float]
) -> None:
    method = run_of(8, **keys).method
    assert [(phase.kind, phase.start, phase.end) for phase in method.phases.phases] == kinds
    assert [method.cost(epoch, 1).backward.density for epoch in range(8)] == densities


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (
            {"dense_from": 8},
            ("dense_from", "the weights would be freed at epoch 8, but epoch 7 is the last; make it earlier"),
        ),
        (
            {"sparse_from": "75%"},
            (
                "sparse_from",
                "the weights would be pruned at epoch 6 and freed at epoch 6; sparse_from must come before dense_from",
            ),
        ),
    ],
)
def test_phases_that_hold_no_epoch_are_problems(keys: dict[str, Any], problem: tuple[str, str]) -> None:
    assert config(**keys).errors(RunSize(8)) == [problem]
    assert config().errors(RunSize(8)) == []
