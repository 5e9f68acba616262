"""DeepR: who dies, who is born, and what the pull and the random walk do to those that live."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD

from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.methods.deepr import Config, Method

EPOCHS, STEPS = 4, 8


def at(step: int) -> Moment:
    return Moment(step // STEPS, step, EPOCHS, STEPS)


class Layer:
    """A layer at the start of a run of DeepR, under SGD without momentum unless said otherwise."""

    def __init__(self, weights: Tensor, seed: int = 0, lr: float = 0.1, momentum: float = 0.0, **keys: Any) -> None:
        self.weight = nn.Parameter(weights.clone())
        self.optimizer = SGD([self.weight], lr=lr, momentum=momentum)
        self.masked = MaskedParameters({"a.weight": self.weight})
        block = {"method": "deepr", "target": 0.5, "distribution": "uniform", "every": 1, "l1": 0.0} | keys
        self.method = Method(Config(**block), self.masked, EPOCHS, seed)
        self.method.attach(self.optimizer, training=None)  # type: ignore[arg-type]
        self.method.on_epoch_start(at(0))

    def step(self, number: int, gradient: Tensor) -> None:
        self.weight.grad = gradient.clone()
        assert self.method.on_gradients(at(number))
        self.optimizer.step()
        self.method.after_step(at(number))

    @property
    def mask(self) -> Tensor:
        return self.masked.masks["a.weight"].clone()

    @property
    def values(self) -> Tensor:
        return self.weight.detach().clone()

    @property
    def signs(self) -> Tensor:
        signs: Tensor = self.method.state_dict()["signs"]["a.weight"]
        return signs


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_signs_are_those_of_the_start_and_random_where_it_is_zero() -> None:
    layer = Layer(normal(20, 30))
    assert torch.equal(layer.signs, layer.values.sign().to(torch.int8))
    assert int(layer.mask.sum()) == 300
    zeros = Layer(torch.zeros(20, 30))
    assert torch.equal(zeros.signs != 0, zeros.mask)
    assert 100 < int((zeros.signs == 1).sum()) < 200


def test_those_that_flip_die_and_as_many_are_born_as_zeros() -> None:
    layer = Layer(normal(20, 30), momentum=0.9)
    layer.step(0, torch.zeros(20, 30))
    before, old = layer.values, layer.mask
    # 0.1 · 10 moves the 100 smallest across zero, and the others to twice their size
    cut = before[old].abs().sort().values[99]
    flips = old & (before.abs() <= cut)
    layer.step(1, torch.where(flips, 20 * before, -10 * before))
    new, values = layer.mask, layer.values
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
    assert torch.equal(layer.signs != 0, new)
    assert torch.equal(layer.signs[stay], before[stay].sign().to(torch.int8))
    assert 30 < int((layer.signs[born] == 1).sum()) < 70
    assert layer.method.metrics() == {"mask_sparsity": 0.5, "mask_updates": 1.0 + 1.0}


def test_at_zero_a_weight_lives_until_it_moves_to_the_wrong_side() -> None:
    layer = Layer(torch.zeros(4, 10))
    old, signs = layer.mask, layer.signs
    layer.step(0, torch.zeros(4, 10))
    assert torch.equal(layer.mask, old)
    layer.step(1, -signs.float())
    assert torch.equal(layer.mask, old)
    torch.testing.assert_close(layer.values, 0.1 * signs)
    layer.step(2, 3 * signs.float())
    assert not layer.values.any()


def test_what_flips_back_before_an_update_never_died() -> None:
    layer = Layer(torch.ones(4, 10), every=3)
    old = layer.mask
    layer.step(0, torch.full((4, 10), 20.0))
    assert (layer.values[old] == -1).all()
    layer.step(1, torch.full((4, 10), -20.0))
    layer.step(2, torch.zeros(4, 10))
    assert layer.method.updates == 1
    assert torch.equal(layer.mask, old)


def test_l1_pulls_weights_to_zero() -> None:
    start = torch.tensor([[0.5, -0.5, 0.25, -0.25]])
    layer = Layer(start, l1=0.2, target=0.0, every=30, lr=1.0)
    layer.step(0, torch.zeros(1, 4))
    torch.testing.assert_close(layer.values, torch.tensor([[0.3, -0.3, 0.05, -0.05]]))


def test_dormant_weights_feel_no_pull() -> None:
    layer = Layer(normal(20, 30), l1=0.2)
    layer.weight.grad = torch.zeros(20, 30)
    layer.method.on_gradients(at(0))
    torch.testing.assert_close(layer.weight.grad, 0.2 * layer.signs)
    assert not layer.weight.grad[~layer.mask].any()


def test_the_noise_has_the_variance_of_all_steps_since_the_update() -> None:
    # sqrt(2 · 0.1 · 0.02 + 2 · 0.1 · 0.02 + 2 · 0.4 · 0.02) = 0.1549, too little to flip a weight of 5
    layer = Layer(torch.full((200, 200), 5.0), temperature=0.02, every=3)
    old = layer.mask
    for step, rate in enumerate([0.1, 0.1, 0.4]):
        assert (layer.values[old] == 5).all()
        layer.optimizer.param_groups[0]["lr"] = rate
        layer.step(step, torch.zeros(200, 200))
    assert torch.equal(layer.mask, old)
    noise = layer.values[old] - 5
    assert noise.std().item() == pytest.approx(0.1549, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.004)
    assert not layer.values[~old].any()
    layer.step(3, torch.zeros(200, 200))
    torch.testing.assert_close(layer.values[old] - 5, noise)
    assert layer.method.state_dict()["variance"] == pytest.approx(2 * 0.4 * 0.02)


def test_what_is_drawn_follows_from_the_seed_and_the_step() -> None:
    def born(seed: int, step: int) -> Tensor:
        layer = Layer(normal(20, 30), every=4)
        layer.method.seed = seed
        layer.weight.grad = torch.zeros(20, 30)
        with torch.no_grad():
            layer.weight.neg_()
        layer.method.after_step(at(step))
        assert not layer.values.any()
        return layer.signs

    assert torch.equal(born(0, 3), born(0, 3))
    assert not torch.equal(born(0, 3), born(1, 3))
    assert not torch.equal(born(0, 3), born(0, 11))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_step_is_followed_by_no_update(value: float) -> None:
    layer = Layer(normal(20, 30), temperature=1.0, l1=0.1)
    with torch.no_grad():
        layer.weight.neg_()
    before, old = layer.values, layer.mask
    layer.weight.grad = torch.full((20, 30), value)
    layer.method.on_gradients(at(0))
    layer.method.after_step(at(0))
    assert torch.equal(layer.values, before)
    assert torch.equal(layer.mask, old)


def test_the_last_step_is_followed_by_no_update() -> None:
    layer = Layer(normal(20, 30), every=1)
    for step in range(EPOCHS * STEPS):
        if step % STEPS == 0 and step > 0:
            layer.method.on_epoch_start(at(step))
        layer.step(step, torch.zeros(20, 30))
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
    layer = Layer(scale * normal(*shape, seed=seed), target=target, temperature=temperature, l1=0.1, momentum=0.9)
    count = int(layer.mask.sum())
    for step in range(6):
        layer.step(step, scale * 5 * normal(*shape, seed=step))
        assert int(layer.mask.sum()) == count
        assert not layer.values[~layer.mask].any()
        assert not (layer.values * layer.signs < 0).any()
        assert torch.equal(layer.signs != 0, layer.mask)
