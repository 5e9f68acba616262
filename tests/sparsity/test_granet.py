"""GraNet: an update prunes along the cubic, then drops the smallest weights and grows by gradient."""

from __future__ import annotations

from typing import Any

import pytest
from by_hand import ByHand

from acdc_cli.recipe.blocks.base import RunSize
from acdc_cli.schedule.time import Phase
from acdc_cli.sparsity.methods.granet import Config

EPOCHS, STEPS = 4, 2
KEYS = {"target": 0.6, "every": 2, "fraction": 0.5, "prune_until": 2}


def config(**keys: Any) -> Config:
    return Config(method="granet", **KEYS | keys)


def started(**keys: Any) -> ByHand:
    weights = {"fc.weight": [[10.0, -9, 8, -7, 6, -5, 4, -3, 2, -1]]}
    run = ByHand("granet", KEYS | keys, weights, epochs=EPOCHS, steps=STEPS, lr=0.1)
    run.start(0)
    return run


def test_an_update_prunes_to_the_cubic_then_drops_the_smallest_and_grows_by_gradient() -> None:
    run = started(initial_sparsity=0.0)
    assert not run.step(2, [0.1, 0.1, 0.1, 0.1, -4.0, 0.1, 0.1, 0.1, 0.1, 5.0])
    # half way the cubic has 0.6 · 7/8 = 0.525, of 10 weights 5 stay; 0.25 (1 + cos(pi/4)) = 0.43 of 5 is 2 to exchange
    assert run.living() == [0, 1, 2, 4, 9]
    # weight 4 was dropped and grew at once, as with RigL; weight 9 was pruned before, and starts from zero
    assert run.values() == [10, -9, 8, 0, 6, 0, 0, 0, 0, 0]
    assert run.weight.grad is not None
    assert not run.weight.grad[~run.masked.masks["fc.weight"]].any()


def test_between_updates_weights_train_under_their_masks() -> None:
    run = started(initial_sparsity=0.5)
    before = run.living()
    for step in (1, 3):
        assert run.step(step, 1.0)
        assert run.living() == before
    assert run.weight.grad is not None
    assert len(before) == run.weight.count_nonzero() == run.weight.grad.count_nonzero() == 5


def test_the_target_is_reached_where_the_cubic_ends_and_each_update_takes_a_dense_gradient() -> None:
    made = started(initial_sparsity=0.0).method
    works = [made.cost(epoch, STEPS) for epoch in range(EPOCHS)]
    assert [work.forward.density for work in works] == [1.0, 0.5, 0.4, 0.4]
    assert [work.dense_gradients for work in works] == [0, 0.5, 0.5, 0.5]
    assert made.phases.phases == (Phase("ramp", 0, 2), Phase("sparse", 2, 4))


def test_a_cubic_that_ends_after_the_last_update_ends_there() -> None:
    assert started(prune_until=4).method.cost(3, STEPS).forward.density == 0.4


@pytest.mark.parametrize(
    ("keys", "key"),
    [({"initial_sparsity": 0.7}, "initial_sparsity"), ({"prune_until": 5}, "prune_until"), ({"end": 5}, "end")],
)
def test_keys_that_do_not_fit_are_errors(keys: dict[str, Any], key: str) -> None:
    assert [named for named, _ in config(**keys).errors(RunSize(EPOCHS, STEPS))] == [key]
    assert config().errors(RunSize(EPOCHS, STEPS)) == config().warnings(RunSize(EPOCHS, STEPS)) == []
