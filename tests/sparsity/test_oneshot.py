"""One-shot: dense, one pruning by magnitude, the same masks ever after."""

from typing import Any

import pytest
import torch
from torch import nn

from acdc_cli.recipe.blocks.sparsity import RunSize
from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.methods.oneshot import Config, Method


def method(epochs: int, **keys: Any) -> Method:
    weight = nn.Parameter(torch.tensor([[4.0, -1.0], [0.5, -3.0]]))
    return Method(Config(method="oneshot", target=0.5, **keys), MaskedParameters({"a.weight": weight}), epochs)


def masks_at_each_epoch(made: Method) -> list[list[bool]]:
    masks = []
    for epoch in range(made.epochs):
        made.on_epoch_start(Moment(epoch, epoch, made.epochs, 1))
        masks.append(made.masked.masks["a.weight"].flatten().tolist())
        with torch.no_grad():
            # what lives shrinks: magnitudes would choose others now
            made.masked.parameters["a.weight"].mul_(0.01)
    return masks


@pytest.mark.parametrize(("at", "dense"), [("50%", 2), (3, 3), (0, 0)])
def test_the_smallest_weights_are_pruned_once(at: int | str, dense: int) -> None:
    made = method(epochs=4, at=at)
    assert masks_at_each_epoch(made) == [[True] * 4] * dense + [[True, False, False, True]] * (4 - dense)
    assert [made.cost(epoch, 1).backward.density for epoch in range(4)] == [1.0] * dense + [0.5] * (4 - dense)


def test_the_phases_are_dense_then_sparse() -> None:
    assert [(phase.kind, phase.start, phase.end) for phase in method(epochs=5).phases.phases] == [
        ("dense", 0, 3),
        ("sparse", 3, 5),
    ]
    assert [(phase.kind, phase.start, phase.end) for phase in method(epochs=5, at=0).phases.phases] == [
        ("sparse", 0, 5)
    ]


def test_pruning_after_the_last_epoch_began_is_a_problem() -> None:
    message = "the weights would be pruned at epoch 5, but epoch 4 is the last; make it earlier"
    assert Config(method="oneshot", target=0.5, at="100%").errors(RunSize(5)) == [("at", message)]
    assert Config(method="oneshot", target=0.5, at=4).errors(RunSize(5)) == []
