"""SNFS: the mean gradient of all weights, where what was dropped grows again, and when."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from by_hand import ByHand, of_two_layers
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from acdc_cli.sparsity.exchange import dropped_by_layer, regrowth


def run_of(weights: dict[str, Any], **keys: Any) -> ByHand:
    interval = {} if {"every", "every_epochs"} & keys.keys() else {"every": 1}
    block = {"target": 0.5, "distribution": "uniform"} | interval | keys
    return ByHand("snfs", block, weights, epochs=4, steps=4, lr=0.1, momentum=0.9)


def layers_of(*rows: list[float], **keys: Any) -> ByHand:
    """Rows of eight weights each, of which the first four live, under SGD whose momentum is 0.5 where they do."""
    layers = run_of({f"{letter}.weight": [row] for letter, row in zip("ab", rows, strict=False)}, **keys)
    layers.masked.set({name: torch.arange(8).view(1, 8) < 4 for name in layers.weights})
    for name, weight in layers.weights.items():
        layers.optimizer.state[weight]["momentum_buffer"] = 0.5 * layers.masked.masks[name]
    return layers


def step(layers: ByHand, number: int, *gradients: Any) -> bool:
    """All of a step but the optimiser's part."""
    layers.set_gradients(*gradients)
    takes_it: bool = layers.method.on_gradients(layers.at(number))
    layers.method.after_step(layers.at(number))
    return takes_it


def smoothed_of(layers: ByHand) -> dict[str, Tensor]:
    smoothed: dict[str, Tensor] = layers.method.state_dict()["smoothed"]
    return smoothed


def test_one_update_worked_by_hand() -> None:
    # 2/16 of the run: 0.6/2 (1 + cos(pi/8)) = 0.577 of 4, so 2 drop in each: 1 and 2 of a, -1 and 3 of b. Mean |m| of
    # those that live before: 1 and 3, so of the 4 dropped 1 grows in a, 3 in b.
    layers = layers_of([5.0, 1, -4, 2, 0, 0, 0, 0], [-1.0, 6, 3, -7, 0, 0, 0, 0], fraction=0.6, every=2, momentum=0.0)
    took = step(layers, 1, [1.0, -1, 1, 1, 0, -9, 8, 0], [-3.0, 3, 3, 3, 4, 0, -5, -2])
    assert took, "the optimiser takes every step"
    # -1 of b grows again, the third largest there: it has never been away
    assert of_two_layers(layers.living) == [[0, 2, 5], [0, 1, 3, 4, 6]]
    assert of_two_layers(layers.values) == [
        [5, 0, -4, 0, 0, 0, 0, 0],
        [-1, 6, 0, -7, 0, 0, 0, 0],
    ]
    assert of_two_layers(layers.momentum) == [[0.5, 0, 0.5, 0, 0, 0, 0, 0], [0.5, 0.5, 0, 0.5, 0, 0, 0, 0]]
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
    weights = {f"{number}.weight": torch.ones(shape) for number, shape in enumerate(shapes)}
    run = run_of(weights, target=target, fraction=fraction, distribution=distribution)
    for number in range(16):
        if number % 4 == 0:
            run.start(number // 4)
        step(run, number, gradient)
        living = sum(int(mask.sum()) for mask in run.masked.masks.values())
        assert living / sum(map(prod, shapes)) == run.method.cost(0, 1).forward.density
    assert run.method.updates == 15


def test_the_mean_gradient_is_that_of_all_weights_and_of_good_steps_only() -> None:
    layers = layers_of([1.0] * 8, [1.0] * 8, every=12, momentum=0.75)
    generator = torch.Generator().manual_seed(0)
    slow = torch.zeros(2, 8)
    for number in range(8):
        gradients = torch.randn(2, 8, generator=generator)
        if number in (3, 5):
            gradients[number % 2, 6] = float("nan") if number == 3 else float("inf")
        else:
            slow = 0.75 * slow + 0.25 * gradients
        step(layers, number, *gradients.tolist())
        smoothed = torch.cat(list(smoothed_of(layers).values()))
        torch.testing.assert_close(smoothed, slow)
    assert slow[:, 4:].all(), "the masked ones too"


@pytest.mark.parametrize("culprit", ["pruned", "kept dense"])
def test_a_bad_gradient_anywhere_leaves_the_mean_as_it_is(culprit: str) -> None:
    layers = layers_of([1.0] * 8, every=12)
    bias = nn.Parameter(torch.zeros(1))
    layers.optimizer.add_param_group({"params": [bias]})
    bias.grad = torch.zeros(1)
    step(layers, 0, 1.0)
    before = smoothed_of(layers)["a.weight"]
    if culprit == "kept dense":
        bias.grad.fill_(float("inf"))
    step(layers, 1, [float("nan") if culprit == "pruned" else 2.0] * 8)
    assert torch.equal(smoothed_of(layers)["a.weight"], before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_step_changes_no_mask(value: float) -> None:
    layers = layers_of([4.0, 3, 2, 1, 0, 0, 0, 0], every=2)
    step(layers, 0, 9.0)
    step(layers, 1, [value] * 8)
    assert layers.living() == [0, 1, 2, 3]
    assert layers.method.updates == 0


def test_between_epochs_the_update_waits_for_the_validation() -> None:
    layers = layers_of([4.0, 3, 2, 1, 0, 0, 0, 0], every_epochs=1)
    for number in range(4):
        step(layers, number, [0.0] * 4 + [9.0] * 4)
    assert layers.living() == [0, 1, 2, 3]
    layers.start(1)
    # 0.5/2 (1 + cos(pi/4)) = 0.43 of 4; the mean |m| of those that live is 0, so the layer keeps its count
    assert layers.living() == [0, 1, 2, 4]


def test_the_mean_is_gone_when_the_last_update_is_over() -> None:
    layers = layers_of([4.0, 3, 2, 1, 0, 0, 0, 0], every=3, end=2)
    # updates before the steps 3 and 6; from step 8 on there are none
    for number in range(6):
        assert smoothed_of(layers)
        step(layers, number, 1.0)
    assert layers.method.updates == 2
    step(layers, 6, 1.0)
    assert not smoothed_of(layers)


def test_layers_with_a_sparsity_of_their_own_are_refused() -> None:
    with pytest.raises(ValidationError, match="layers: snfs moves weights between layers, so no layer keeps its own"):
        run_of({}, layers={"a": 0.9})
