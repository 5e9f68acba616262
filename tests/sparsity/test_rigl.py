"""RigL: when the masks are updated, how many weights change, and which."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from by_hand import ByHand
from pydantic import ValidationError

from acdc_cli.errors import RecipeError
from acdc_cli.recipe.blocks.base import RunSize
from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.exchange import exchange
from acdc_cli.sparsity.methods.rigl import Config


def config(**keys: Any) -> Config:
    interval = {} if {"every", "every_epochs"} & keys.keys() else {"every": 1}
    return Config(**{"method": "rigl", "target": 0.6, "distribution": "uniform"} | interval | keys)


def at(step: int, epochs: int = 8, steps_per_epoch: int = 1) -> Moment:
    return Moment(step // steps_per_epoch, step, epochs, steps_per_epoch)


def layer_of(steps: int = 1, **keys: Any) -> ByHand:
    """Two rows of five weights, four of which live, under SGD whose momentum is 0.5 everywhere that lives."""
    block = {"target": 0.6, "distribution": "uniform", "fraction": 0.8, "every": 1} | keys
    weights = {"a.weight": [[5.0, -1.0, 2.0, -4.0, 0.0], [0.0] * 5]}
    layer = ByHand("rigl", block, weights, epochs=8, steps=steps, lr=0.1, momentum=0.9)
    layer.masked.set({"a.weight": torch.arange(10).view(2, 5) < 4})
    layer.optimizer.state[layer.weight]["momentum_buffer"] = 0.5 * layer.masked.masks["a.weight"]
    return layer


def test_one_update_worked_by_hand() -> None:
    # t/T = 2/6: 0.8/2 (1 + cos(pi/3)) = 0.6 of 4 weights, so 2 drop: -1 and 2. Of all but those that stay, the largest
    # gradients are -7 (of -1, which so stays after all) and the first of the two sixes.
    layer = layer_of()
    steps = layer.step(2, [9, -7, 0.5, 8, 0, 3, -6, 6, -1, 2])
    assert not steps
    assert layer.living() == [0, 1, 3, 6]
    assert layer.weight.tolist() == [[5, -1, 0, -4, 0], [0] * 5]
    assert layer.momentum() == [0.5, 0.5, 0, 0.5, 0, *[0] * 5]
    assert layer.gradient() == [9, -7, 0, 8, 0, 0, -6, 0, 0, 0]
    assert layer.method.metrics() == {"mask_sparsity": pytest.approx(0.6), "mask_updates": 1.0}


def test_between_updates_the_gradient_is_masked_and_the_optimiser_steps() -> None:
    layer = layer_of(every=3)
    assert layer.step(2, [1.0] * 10)
    assert layer.living() == [0, 1, 2, 3]
    assert layer.gradient() == [1.0] * 4 + [0.0] * 6


def test_as_many_drop_as_grow() -> None:
    generator = torch.Generator().manual_seed(0)
    for living, exchanged in [(40, 12), (40, 40), (40, 0), (0, 0), (100, 30)]:
        old = torch.randperm(100, generator=generator) < living
        magnitudes = torch.where(old, torch.rand(100, generator=generator), -1.0)
        new = exchange(magnitudes, torch.rand(100, generator=generator), living - exchanged, exchanged)
        dropped, grown = int((old & ~new).sum()), int((new & ~old).sum())
        assert int(new.sum()) == living
        assert dropped == grown <= exchanged


def test_a_layer_that_is_dense_stays_as_it_is() -> None:
    assert exchange(torch.tensor([3.0, 1.0, 2.0]), torch.zeros(3), kept=1, grown=2).all()


def test_the_share_exchanged_falls_along_a_cosine_to_nothing() -> None:
    block = config(fraction=0.3)
    shares = [block.exchanged(at(step)) for step in range(7)]
    assert shares[:7:3] == pytest.approx([0.3, 0.15, 0.0])
    assert shares[2] == pytest.approx(0.15 * 1.5)
    assert shares == sorted(shares, reverse=True)


def test_no_update_comes_at_step_0_nor_in_the_last_quarter() -> None:
    def updates(**keys: Any) -> list[int]:
        return [step for step in range(40) if config(**keys).updates_at(at(step, steps_per_epoch=5))]

    assert updates(every=7) == [7, 14, 21, 28]  # 75 % of 8 epochs of 5 steps: before step 30
    assert updates(every=10) == [10, 20]
    assert updates(every_epochs=2) == [10, 20]
    assert updates(every_epochs=1, end=3) == [5, 10]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_changes_no_mask_and_counts_for_nothing_later(value: float) -> None:
    layer = layer_of(every=4, average_batches=2)
    assert layer.step(3, [value] * 10)
    assert layer.step(4, [value] + [1.0] * 9), "left to the optimiser, which is told on the device to skip it"
    assert layer.living() == [0, 1, 2, 3]
    assert layer.method.metrics()["mask_updates"] == 0


def test_bad_batches_are_left_out_of_the_mean() -> None:
    layer = layer_of(every=2, average_batches=2)
    assert layer.step(1, [float("nan")] * 10)
    assert not layer.step(2, [0.0] * 8 + [2.0, 1.0])
    assert layer.living() == [0, 3, 8, 9]


def test_the_mean_over_batches_decides_what_grows() -> None:
    # weight 8 has the largest gradient of each batch, of opposite signs
    gradients = [[0.0] * 4 + [1.0, 0, 0, 0, 9, 1.5], [0.0] * 4 + [1.0, 0, 0, 0, -9, 1.5]]
    averaged, last_only = layer_of(every=2, average_batches=2), layer_of(every=2)
    for layer in (averaged, last_only):
        assert [layer.step(number, gradients[number - 1]) for number in (1, 2)] == [True, False]
    assert averaged.living() == [0, 3, 4, 9]
    assert last_only.living() == [0, 3, 8, 9]


def test_a_mean_that_was_begun_is_part_of_the_state() -> None:
    whole, resumed = layer_of(every=2, average_batches=2), layer_of(every=2, average_batches=2)
    whole.step(1, [0.0] * 7 + [9.0, 0, 0])
    state = copy.deepcopy(whole.method.state_dict())
    assert state["gradients"]["a.weight"].flatten().tolist() == [0.0] * 7 + [9.0, 0, 0]
    whole.step(2, [0.0] * 9 + [1.0])
    resumed.method.load_state_dict(state)
    resumed.step(2, [0.0] * 9 + [1.0])
    assert resumed.living() == whole.living() == [0, 3, 7, 9]
    assert whole.method.state_dict()["gradients"] == {}


def test_batches_since_the_update_before_are_averaged_at_most() -> None:
    block = config(every_epochs=1, average_batches=9)
    assert [step for step in range(40) if block.averages_at(at(step, steps_per_epoch=5))] == list(range(1, 26))
    block = config(every=10, average_batches=3)
    assert [step for step in range(40) if block.averages_at(at(step, steps_per_epoch=5))] == [8, 9, 10, 18, 19, 20]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"every": 100, "every_epochs": 1}, "every: set the interval"),
        ({"every": None}, "every: set the interval between two updates"),
        ({"every": 4, "average_batches": 5}, "average_batches: only 4 batches lie between two updates"),
        ({"distribution": "global"}, "distribution: global ranks all weights by magnitude, but the masks are random"),
        ({"target": 0.5, "pattern": "2:4"}, "pattern: weights drop"),
        ({"pattern": "block4"}, "pattern: weights drop and grow one by one"),
    ],
)
def test_keys_that_exclude_each_other_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**keys)


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        ({"end": 9}, "end", "the updates would end at epoch 9, but the run has 8; make it earlier"),
        ({"end": 0}, "end", "there is no update before epoch 0, where updates end; for fixed masks, use method static"),
        ({"every_epochs": 6}, "every_epochs", "there is no update before epoch 6, "),
    ],
)
def test_updates_outside_the_run_are_a_problem(keys: dict[str, Any], key: str, message: str) -> None:
    [(about, said)] = config(**keys).errors(RunSize(8))
    assert about == key
    assert said.startswith(message)
    assert config(every_epochs=5).errors(RunSize(8)) == []
    assert config(end="100%").errors(RunSize(8)) == []


def test_an_interval_longer_than_the_run_is_refused_when_the_steps_are_known() -> None:
    with pytest.raises(RecipeError, match=r"sparsity\.every: .* at step 30, .* before step 30"):
        layer_of(steps=5, every=30).start(0)
    layer_of(steps=5, every=29).start(0)
