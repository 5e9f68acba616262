"""One-shot: dense, one pruning by magnitude, the same masks ever after."""

from typing import Any

import pytest
import torch
from by_hand import ByHand

from acdc_cli.recipe.blocks.base import RunSize
from acdc_cli.sparsity.methods.oneshot import Config


def run_of(epochs: int, **keys: Any) -> ByHand:
    return ByHand("oneshot", {"target": 0.5} | keys, {"a.weight": [[4.0, -1.0], [0.5, -3.0]]}, epochs=epochs)


def masks_at_each_epoch(run: ByHand) -> list[list[bool]]:
    masks = []
    for epoch in range(run.epochs):
        run.start(epoch)
        masks.append(run.masked.masks["a.weight"].flatten().tolist())
        with torch.no_grad():
            # what lives shrinks: magnitudes would choose others now
            run.weight.mul_(0.01)
    return masks


@pytest.mark.parametrize(("at", "dense"), [("50%", 2), (3, 3), (0, 0)])
def test_the_smallest_weights_are_pruned_once(at: int | str, dense: int) -> None:
    run = run_of(epochs=4, at=at)
    assert masks_at_each_epoch(run) == [[True] * 4] * dense + [[True, False, False, True]] * (4 - dense)
    assert [run.method.cost(epoch, 1).backward.density for epoch in range(4)] == [1.0] * dense + [0.5] * (4 - dense)


def test_the_phases_are_dense_then_sparse() -> None:
    assert [(phase.kind, phase.start, phase.end) for phase in run_of(epochs=5).method.phases.phases] == [
        ("dense", 0, 3),
        ("sparse", 3, 5),
    ]
    assert [(phase.kind, phase.start, phase.end) for phase in run_of(epochs=5, at=0).method.phases.phases] == [
        ("sparse", 0, 5)
    ]


def test_pruning_after_the_last_epoch_began_is_a_problem() -> None:
    message = "the weights would be pruned at epoch 5, but epoch 4 is the last; make it earlier"
    assert Config(method="oneshot", target=0.5, at="100%").errors(RunSize(5)) == [("at", message)]
    assert Config(method="oneshot", target=0.5, at=4).errors(RunSize(5)) == []
