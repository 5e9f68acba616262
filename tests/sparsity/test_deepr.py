"""DeepR: who dies, who is born, and what the pull and the random walk do to those that live."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import ByHand
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

EPOCHS, STEPS = 4, 8


def layer_of(weights: Tensor, lr: float = 0.1, momentum: float = 0.0, **keys: Any) -> ByHand:
    """A layer at the start of a run of DeepR, under SGD without momentum unless said otherwise."""
    block = {"target": 0.5, "distribution": "uniform", "every": 1, "l1": 0.0} | keys
    layer = ByHand("deepr", block, {"a.weight": weights}, epochs=EPOCHS, steps=STEPS, lr=lr, momentum=momentum)
    layer.start(0)
    return layer


def mask_of(layer: ByHand) -> Tensor:
    return layer.masked.masks["a.weight"].clone()


def values_of(layer: ByHand) -> Tensor:
    return layer.weight.detach().clone()


def signs_of(layer: ByHand) -> Tensor:
    signs: Tensor = layer.method.state_dict()["signs"]["a.weight"]
    return signs


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_signs_are_those_of_the_start_and_random_where_it_is_zero() -> None:
    layer = layer_of(normal(20, 30))
    assert torch.equal(signs_of(layer), values_of(layer).sign().to(torch.int8))
    assert int(mask_of(layer).sum()) == 300
    zeros = layer_of(torch.zeros(20, 30))
    assert torch.equal(signs_of(zeros) != 0, mask_of(zeros))
    assert 100 < int((signs_of(zeros) == 1).sum()) < 200


def test_those_that_flip_die_and_as_many_are_born_as_zeros() -> None:
    layer = layer_of(normal(20, 30), momentum=0.9)
    assert layer.step(0, 0.0)
    before, old = values_of(layer), mask_of(layer)
    # 0.1 · 10 moves the 100 smallest across zero, and the others to twice their size
    cut = before[old].abs().sort().values[99]
    flips = old & (before.abs() <= cut)
    assert layer.step(1, torch.where(flips, 20 * before, -10 * before))
    new, values = mask_of(layer), values_of(layer)
    assert int(new.sum()) == 300
    stay = old & ~flips
    assert new[stay].all(), "with its sign intact none dies"
    torch.testing.assert_close(values[stay], 2 * before[stay])
    born = new & ~stay
    assert int(born.sum()) == 100
    assert 10 < int((born & flips).sum()) < 50, "those that just died are born again like any other: 100 of 400"
    momentum = layer.optimizer.state[layer.weight]["momentum_buffer"]
    assert layer.weight.grad is not None
    for tensor in (values, momentum, layer.weight.grad):
        assert not tensor[~stay].any()
        assert tensor[stay].all()
    assert torch.equal(signs_of(layer) != 0, new)
    assert torch.equal(signs_of(layer)[stay], before[stay].sign().to(torch.int8))
    assert 30 < int((signs_of(layer)[born] == 1).sum()) < 70
    assert layer.method.metrics() == {"mask_sparsity": 0.5, "mask_updates": 1.0 + 1.0}


def test_at_zero_a_weight_lives_until_it_moves_to_the_wrong_side() -> None:
    layer = layer_of(torch.zeros(4, 10))
    old, signs = mask_of(layer), signs_of(layer)
    assert layer.step(0, 0.0)
    assert torch.equal(mask_of(layer), old)
    assert layer.step(1, -signs.float())
    assert torch.equal(mask_of(layer), old)
    torch.testing.assert_close(values_of(layer), 0.1 * signs)
    assert layer.step(2, 3 * signs.float())
    assert not values_of(layer).any()


def test_what_flips_back_before_an_update_never_died() -> None:
    layer = layer_of(torch.ones(4, 10), every=3)
    old = mask_of(layer)
    assert layer.step(0, 20.0)
    assert (values_of(layer)[old] == -1).all()
    assert layer.step(1, -20.0)
    assert layer.step(2, 0.0)
    assert layer.method.updates == 1
    assert torch.equal(mask_of(layer), old)


def test_l1_pulls_weights_to_zero() -> None:
    start = torch.tensor([[0.5, -0.5, 0.25, -0.25]])
    layer = layer_of(start, l1=0.2, target=0.0, every=30, lr=1.0)
    assert layer.step(0, 0.0)
    torch.testing.assert_close(values_of(layer), torch.tensor([[0.3, -0.3, 0.05, -0.05]]))


def test_dormant_weights_feel_no_pull() -> None:
    layer = layer_of(normal(20, 30), l1=0.2)
    layer.weight.grad = torch.zeros(20, 30)
    layer.method.on_gradients(layer.at(0))
    torch.testing.assert_close(layer.weight.grad, 0.2 * signs_of(layer))
    assert not layer.weight.grad[~mask_of(layer)].any()


def test_the_noise_has_the_variance_of_all_steps_since_the_update() -> None:
    # sqrt(2 · 0.1 · 0.02 + 2 · 0.1 · 0.02 + 2 · 0.4 · 0.02) = 0.1549, too little to flip a weight of 5
    layer = layer_of(torch.full((200, 200), 5.0), temperature=0.02, every=3)
    old = mask_of(layer)
    for step, rate in enumerate([0.1, 0.1, 0.4]):
        assert (values_of(layer)[old] == 5).all()
        layer.optimizer.param_groups[0]["lr"] = rate
        assert layer.step(step, 0.0)
    assert torch.equal(mask_of(layer), old)
    noise = values_of(layer)[old] - 5
    assert noise.std().item() == pytest.approx(0.1549, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.004)
    assert not values_of(layer)[~old].any()
    assert layer.step(3, 0.0)
    torch.testing.assert_close(values_of(layer)[old] - 5, noise)
    assert layer.method.state_dict()["variance"] == pytest.approx(2 * 0.4 * 0.02)


def test_what_is_drawn_follows_from_the_seed_and_the_step() -> None:
    def born(seed: int, step: int) -> Tensor:
        layer = layer_of(normal(20, 30), every=4)
        layer.method.seed = seed
        layer.weight.grad = torch.zeros(20, 30)
        with torch.no_grad():
            layer.weight.neg_()
        layer.method.after_step(layer.at(step))
        assert not values_of(layer).any()
        return signs_of(layer)

    assert torch.equal(born(0, 3), born(0, 3))
    assert not torch.equal(born(0, 3), born(1, 3))
    assert not torch.equal(born(0, 3), born(0, 11))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_step_is_followed_by_no_update(value: float) -> None:
    layer = layer_of(normal(20, 30), temperature=1.0, l1=0.1)
    with torch.no_grad():
        layer.weight.neg_()
    before, old = values_of(layer), mask_of(layer)
    assert layer.step(0, value)
    assert torch.equal(values_of(layer), before)
    assert torch.equal(mask_of(layer), old)


def test_the_last_step_is_followed_by_no_update() -> None:
    layer = layer_of(normal(20, 30), every=1)
    for step in range(EPOCHS * STEPS):
        if step % STEPS == 0 and step > 0:
            layer.start(step // STEPS)
        assert layer.step(step, 0.0)
    assert layer.method.updates == EPOCHS * STEPS - 1


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 6)),
    target=st.sampled_from([0.0, 0.5, 0.9, 0.999]),
    scale=st.sampled_from([0.0, 1.0]),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 9),
)
def test_the_count_never_changes(
    shape: tuple[int, int], target: float, scale: float, temperature: float, seed: int
) -> None:
    layer = layer_of(scale * normal(*shape, seed=seed), target=target, temperature=temperature, l1=0.1, momentum=0.9)
    count = int(mask_of(layer).sum())
    for step in range(6):
        assert layer.step(step, scale * 5 * normal(*shape, seed=step))
        assert int(mask_of(layer).sum()) == count
        assert not values_of(layer)[~mask_of(layer)].any()
        assert not (values_of(layer) * signs_of(layer) < 0).any()
        assert torch.equal(signs_of(layer) != 0, mask_of(layer))
