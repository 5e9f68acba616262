"""SNFS: the mean gradient of all weights, where what was dropped grows again, and when."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim import SGD

from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.exchange import dropped_by_layer, regrowth
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.methods.snfs import Config, Method


def config(**keys: Any) -> Config:
    interval = {} if {"every", "every_epochs"} & keys.keys() else {"every": 1}
    return Config(**{"method": "snfs", "target": 0.5, "distribution": "uniform"} | interval | keys)


def at(step: int, epochs: int = 4, steps_per_epoch: int = 4) -> Moment:
    return Moment(step // steps_per_epoch, step, epochs, steps_per_epoch)


class Layers:
    """Rows of eight weights each, of which the first four live, under SGD whose momentum is 0.5 where they do."""

    def __init__(self, *rows: list[float], **keys: Any) -> None:
        self.weights = {
            f"{letter}.weight": nn.Parameter(torch.tensor([row]))
            for letter, row in zip("abc"[: len(rows)], rows, strict=True)
        }
        self.optimizer = SGD(self.weights.values(), lr=0.1, momentum=0.9)
        self.masked = MaskedParameters(self.weights)
        self.method = Method(config(**keys), self.masked, epochs=4)
        self.method.attach(self.optimizer, training=None)  # type: ignore[arg-type]
        self.masked.set({name: torch.arange(8).view(1, 8) < 4 for name in self.weights})
        for name, weight in self.weights.items():
            self.optimizer.state[weight]["momentum_buffer"] = 0.5 * self.masked.masks[name]

    def step(self, moment: Moment, *gradients: list[float]) -> bool:
        """All of a step but the optimiser's part."""
        for weight, gradient in zip(self.weights.values(), gradients, strict=True):
            weight.grad = torch.tensor([gradient])
        takes_it = self.method.on_gradients(moment)
        self.method.after_step(moment)
        return takes_it

    @property
    def living(self) -> list[list[int]]:
        return [mask[0].nonzero().flatten().tolist() for mask in self.masked.masks.values()]

    @property
    def momentum(self) -> list[list[float]]:
        return [self.optimizer.state[weight]["momentum_buffer"][0].tolist() for weight in self.weights.values()]

    @property
    def smoothed(self) -> dict[str, Tensor]:
        smoothed: dict[str, Tensor] = self.method.state_dict()["smoothed"]
        return smoothed


def test_one_update_worked_by_hand() -> None:
    # 2/16 of the run: 0.6/2 (1 + cos(pi/8)) = 0.577 of 4, so 2 drop in each: 1 and 2 of a, -1 and 3 of b. Mean |m| of
    # those that live before: 1 and 3, so of the 4 dropped 1 grows in a, 3 in b.
    layers = Layers([5.0, 1, -4, 2, 0, 0, 0, 0], [-1.0, 6, 3, -7, 0, 0, 0, 0], fraction=0.6, every=2, momentum=0.0)
    took = layers.step(at(1), [1.0, -1, 1, 1, 0, -9, 8, 0], [-3.0, 3, 3, 3, 4, 0, -5, -2])
    assert took, "the optimiser takes every step"
    # -1 of b grows again, the third largest there: it has never been away
    assert layers.living == [[0, 2, 5], [0, 1, 3, 4, 6]]
    assert [weight[0].tolist() for weight in layers.weights.values()] == [
        [5, 0, -4, 0, 0, 0, 0, 0],
        [-1, 6, 0, -7, 0, 0, 0, 0],
    ]
    assert layers.momentum == [[0.5, 0, 0.5, 0, 0, 0, 0, 0], [0.5, 0.5, 0, 0.5, 0, 0, 0, 0]]
    assert layers.method.metrics() == {"mask_sparsity": 0.5, "mask_updates": 1.0}


@pytest.mark.parametrize(
    ("living", "momentum", "dropped"),
    [
        ((317, 100), (3.0, 1.0), [3, 42]),  # a lacks 3 of 320: 3/320 of 317 is 2.97, where 0.426 would be 135
        ((317, 100), (1.0, 3.0), [135, 42]),  # a does not grow
        ((256, 100), (3.0, 1.0), [109, 42]),  # a fifth of a is missing: nothing is nearly dense
        ((257, 100), (3.0, 1.0), [51, 42]),  # 63/320 of 257 is 50.6
        ((320, 100), (3.0, 1.0), [0, 42]),  # a dense layer that grows drops nothing
        ((317, 100), (2.0, 2.0), [135, 42]),  # no layer lies above the average
        ((317, 100), (0.0, 0.0), [135, 42]),
    ],
)
def test_a_nearly_dense_layer_that_grows_drops_at_most_its_sparsity(
    living: tuple[int, int], momentum: tuple[float, float], dropped: list[int]
) -> None:
    alive, means = (dict(zip("ab", each, strict=True)) for each in (living, momentum))
    assert list(dropped_by_layer(0.4268, alive, {"a": 320, "b": 1000}, means).values()) == dropped


@pytest.mark.parametrize(
    ("dropped", "momentum", "room", "grown"),
    [
        ((2, 2), (1.0, 3.0), (8, 8), [1, 3]),
        ((2, 2), (1.0, 3.0), (8, 2), [2, 2]),  # b is full with 2, its excess goes to a
        ((4, 4, 0), (1.0, 6.0, 1.0), (4, 4, 9), [2, 4, 2]),  # b's excess is shared out in proportion
        ((0, 9, 3), (1.0, 4.0, 1.0), (1, 20, 3), [1, 9, 2]),  # 12 in 1 : 4 : 1 are 2, 8, 2; then 11 in 4 : 1
        ((0, 0, 6), (10.0, 5.0, 1.0), (1, 3, 8), [1, 3, 2]),  # 3.75, 1.9, 0.4; without a 4.2, 0.8; then 2 are left
        ((3, 2, 1), (0.0, 0.0, 0.0), (9, 9, 9), [3, 2, 1]),  # momentum says nothing: each gets back what it dropped
        ((3, 2, 1), (0.0, 0.0, 1.0), (3, 2, 2), [2, 2, 2]),  # 4 for which c has no room: 2.4 and 1.6
        ((1, 1), (0.0, 1.0), (9, 9), [0, 2]),
        ((1, 0), (1.0, 1.0), (9, 9), [1, 0]),  # 0.5 each: the first among equals
        ((1, 1, 0), (1.0, 1.0, 1.0), (9, 9, 9), [1, 1, 0]),  # 0.67 each
        ((0, 0), (1.0, 1.0), (0, 5), [0, 0]),
    ],
)
def test_what_was_dropped_grows_in_proportion_to_mean_momentum(
    dropped: tuple[int, ...], momentum: tuple[float, ...], room: tuple[int, ...], grown: list[int]
) -> None:
    names = "abc"[: len(dropped)]
    by_layer = [dict(zip(names, values, strict=True)) for values in (dropped, momentum, room)]
    assert list(regrowth(*by_layer).values()) == grown


@given(
    layers=st.lists(
        st.integers(1, 50)
        .flatmap(
            lambda size: st.tuples(
                st.just(size), st.integers(0, size), st.sampled_from([0.0, 1.0, 1e-30]) | st.floats(0, 1e30)
            )
        )
        .flatmap(lambda layer: st.tuples(*map(st.just, layer), st.integers(0, layer[1]))),
        min_size=1,
        max_size=6,
    )
)
def test_every_dropped_weight_grows_somewhere_where_there_is_room(layers: list[tuple[int, int, float, int]]) -> None:
    names = [str(number) for number in range(len(layers))]
    dropped = {name: drop for name, (_, _, _, drop) in zip(names, layers, strict=True)}
    room = {name: size - living + drop for name, (size, living, _, drop) in zip(names, layers, strict=True)}
    momentum = {name: mean for name, (_, _, mean, _) in zip(names, layers, strict=True)}
    grown = regrowth(dropped, momentum, room)
    assert sum(grown.values()) == sum(dropped.values())
    assert all(0 <= grown[name] <= room[name] for name in names)
    for one in names:
        for other in names:
            if momentum[one] > momentum[other] and grown[one] < room[one]:
                assert grown[one] >= grown[other], "more momentum, no fewer weights"


@given(
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=3),
    target=st.sampled_from([0.0, 0.5, 0.9, 0.999]),
    gradient=st.sampled_from([0.0, 1.0]),
    fraction=st.sampled_from([0.0, 0.5, 1.0]),
    distribution=st.sampled_from(["uniform", "erk"]),
)
def test_the_total_is_exact_after_every_update(
    shapes: list[tuple[int, int]], target: float, gradient: float, fraction: float, distribution: str
) -> None:
    weights = {f"{number}.weight": nn.Parameter(torch.ones(shape)) for number, shape in enumerate(shapes)}
    masked = MaskedParameters(weights)
    method = Method(config(target=target, fraction=fraction, distribution=distribution), masked, epochs=4)
    for step in range(16):
        if step % 4 == 0:
            method.on_epoch_start(at(step))
        for weight in weights.values():
            weight.grad = torch.full_like(weight, gradient)
        method.on_gradients(at(step))
        method.after_step(at(step))
        living = sum(int(mask.sum()) for mask in masked.masks.values())
        assert living / sum(map(prod, shapes)) == method.cost(0, 1).forward.density
    assert method.updates == 15


def test_the_mean_gradient_is_that_of_all_weights_and_of_good_steps_only() -> None:
    layers = Layers([1.0] * 8, [1.0] * 8, every=12, momentum=0.75)
    generator = torch.Generator().manual_seed(0)
    slow = torch.zeros(2, 8)
    for step in range(8):
        gradients = torch.randn(2, 8, generator=generator)
        if step in (3, 5):
            gradients[step % 2, 6] = float("nan") if step == 3 else float("inf")
        else:
            slow = 0.75 * slow + 0.25 * gradients
        layers.step(at(step), *gradients.tolist())
        smoothed = torch.cat(list(layers.smoothed.values()))
        torch.testing.assert_close(smoothed, slow)
    assert slow[:, 4:].all(), "the masked ones too"


@pytest.mark.parametrize("culprit", ["pruned", "kept dense"])
def test_a_bad_gradient_anywhere_leaves_the_mean_as_it_is(culprit: str) -> None:
    layers = Layers([1.0] * 8, every=12)
    bias = nn.Parameter(torch.zeros(1))
    layers.optimizer.add_param_group({"params": [bias]})
    bias.grad = torch.zeros(1)
    layers.step(at(0), [1.0] * 8)
    before = layers.smoothed["a.weight"]
    if culprit == "kept dense":
        bias.grad.fill_(float("inf"))
    layers.step(at(1), [float("nan") if culprit == "pruned" else 2.0] * 8)
    assert torch.equal(layers.smoothed["a.weight"], before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_step_changes_no_mask(value: float) -> None:
    layers = Layers([4.0, 3, 2, 1, 0, 0, 0, 0], every=2)
    layers.step(at(0), [9.0] * 8)
    layers.step(at(1), [value] * 8)
    assert layers.living == [[0, 1, 2, 3]]
    assert layers.method.updates == 0


def test_between_epochs_the_update_waits_for_the_validation() -> None:
    layers = Layers([4.0, 3, 2, 1, 0, 0, 0, 0], every_epochs=1)
    for step in range(4):
        layers.step(at(step), [0.0] * 4 + [9.0] * 4)
    assert layers.living == [[0, 1, 2, 3]]
    layers.method.on_epoch_start(at(4))
    # 0.5/2 (1 + cos(pi/4)) = 0.43 of 4; the mean |m| of those that live is 0, so the layer keeps its count
    assert layers.living == [[0, 1, 2, 4]]


def test_the_mean_is_gone_when_the_last_update_is_over() -> None:
    layers = Layers([4.0, 3, 2, 1, 0, 0, 0, 0], every=3, end=2)
    # updates before the steps 3 and 6; from step 8 on there are none
    for step in range(6):
        assert layers.smoothed
        layers.step(at(step), [1.0] * 8)
    assert layers.method.updates == 2
    layers.step(at(6), [1.0] * 8)
    assert not layers.smoothed


def test_layers_with_a_sparsity_of_their_own_are_refused() -> None:
    with pytest.raises(ValidationError, match="layers: snfs moves weights between layers, so no layer keeps its own"):
        config(layers={"a": 0.9})
