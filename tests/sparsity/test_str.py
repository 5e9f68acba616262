"""STR: the soft threshold, how it is learned, and that it decays by itself."""

from __future__ import annotations

import copy
from math import log
from typing import Any

import pytest
import torch
from by_hand import ByHand
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from acdc_cli.errors import RecipeError
from acdc_cli.recipe.blocks.optim import LinearSchedule, SGDBlock
from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.methods.str import Config, Method
from acdc_cli.training.optimizers import build_optimizer

QUARTER = log(0.25 / 0.75)
"""The s whose threshold is 1/4."""


def at(step: int) -> Moment:
    return Moment(step // 10, step, 8, 10)


def layer_of(weights: list[float], lr: float = 0.1, weight_decay: float = 0.0, **keys: Any) -> ByHand:
    """One layer of a row of weights, under SGD without momentum."""
    run = {"epochs": 8, "steps": 10, "lr": lr, "weight_decay": weight_decay}
    layer = ByHand("str", {"s_init": QUARTER} | keys, {"a.weight": [weights]}, **run)
    layer.start(0)
    return layer


def s_of(layer: ByHand) -> float:
    s: float = layer.method.s.item()
    return s


def test_a_run_starts_with_weights_less_the_threshold() -> None:
    layer = layer_of([0.5, -0.3, 0.25, -0.1, 0.0])
    assert layer.values() == pytest.approx([0.25, -0.05, 0, 0, 0])
    assert layer.values()[2:] == [0, 0, 0]
    assert layer.latent() == pytest.approx([0.5, -0.3, 0.25, -0.1, 0.0])


def test_one_step_worked_by_hand() -> None:
    # dL/ds = -1/4 · 3/4 · (1 · 1 + 2 · -1): what the two zeros would have added does not count
    layer = layer_of([0.5, -0.3, 0.2, -0.1])
    assert layer.step(0, [1.0, 2.0, 3.0, 4.0])
    assert layer.gradient() == [1.0, 2.0, 0.0, 0.0]
    assert layer.method.s.grad.tolist() == pytest.approx([3 / 16])
    assert layer.latent() == pytest.approx([0.4, -0.5, 0.2, -0.1])
    assert s_of(layer) == pytest.approx(QUARTER - 0.1 * 3 / 16)
    threshold = torch.tensor(s_of(layer)).sigmoid().item()
    assert layer.values() == pytest.approx([0.4 - threshold, threshold - 0.5, 0, 0])


def test_far_below_zero_s_moves_by_its_decay_alone() -> None:
    layer = layer_of([0.5, -0.3, 0.2, -0.1], weight_decay=0.01, s_init=-3200.0)
    for lr in (0.1, 0.2, 0.05):
        for group in layer.optimizer.param_groups:
            group["lr"] = lr
        assert layer.step(0, [1.0, -1.0, 5.0, -7.0])
    # 1 - lr · decay: 0.999 · 0.998 · 0.9995
    assert s_of(layer) == pytest.approx(-3200 * 0.996503499, rel=1e-6)
    assert layer.values() == layer.latent(), "a threshold of 0 leaves the training dense"
    assert layer.latent()[0] == pytest.approx(0.5 * 0.996503499 - 0.1 * 0.998 * 0.9995 - 0.2 * 0.9995 - 0.05)


def test_the_decay_of_s_is_that_of_the_weights_unless_it_is_given() -> None:
    def decayed(**keys: Any) -> float:
        layer = layer_of([0.5], weight_decay=0.01, s_init=-50.0, **keys)
        assert layer.step(0, [0.0])
        assert layer.latent() == pytest.approx([0.5 * 0.999])
        return s_of(layer)

    assert decayed() == pytest.approx(-50 * 0.999)
    assert decayed(s_decay=1.0) == pytest.approx(-50 * 0.9)
    assert decayed(s_decay=0.0) == -50


def test_a_weight_below_the_threshold_decays_and_takes_no_gradient() -> None:
    layer = layer_of([0.5, 0.2], weight_decay=0.1, s_decay=0.0)
    assert layer.step(0, [0.0, 100.0])
    assert layer.latent() == pytest.approx([0.495, 0.198])
    assert s_of(layer) == pytest.approx(QUARTER)


def test_a_weight_returns_when_the_threshold_falls() -> None:
    layer = layer_of([1.0, 0.2], lr=1.0)
    assert layer.step(0, [-5.0, 0.0])  # dL/ds = 15/16: the threshold falls from 0.25 to 0.116
    assert layer.values()[1] == pytest.approx(0.2 - torch.tensor(QUARTER - 15 / 16).sigmoid().item())
    assert layer.values()[1] > 0


def test_a_step_that_the_optimiser_skips_leaves_everything_as_it_was() -> None:
    layer = layer_of([0.5, -0.3, 0.2, -0.1], weight_decay=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    before = layer.values(), layer.latent(), s_of(layer)
    scaler.scale(torch.ones(()))
    layer.weight.grad = torch.tensor([[1.0, float("inf"), 1.0, 1.0]])
    scaler.unscale_(layer.optimizer)
    layer.method.on_gradients(at(0))
    scaler.step(layer.optimizer)
    layer.method.after_step(at(0))
    assert (layer.values(), layer.latent(), s_of(layer)) == before


def test_a_scaled_loss_moves_s_as_an_unscaled_one() -> None:
    plain, scaled = layer_of([0.5, -0.3, 0.2, -0.1]), layer_of([0.5, -0.3, 0.2, -0.1])
    assert plain.step(0, [1.0, 2.0, 3.0, 4.0])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (1.0, 0.0):  # after the first step, s.grad is there when the scaler looks
        scaled.optimizer.zero_grad()
        scaled.weight.grad = factor * 1024 * torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        scaler.scale(torch.ones(()))
        scaler.unscale_(scaled.optimizer)
        scaled.method.on_gradients(at(0))
        scaler.step(scaled.optimizer)
        scaler.update()
        scaled.method.after_step(at(0))
    assert (scaled.values(), scaled.latent(), s_of(scaled)) == (plain.values(), plain.latent(), s_of(plain))


def test_a_layer_that_no_gradient_reaches_is_let_be() -> None:
    layer = layer_of([0.5, -0.3, 0.2], weight_decay=0.1, s_decay=0.0)
    assert layer.weight.grad is None
    layer.method.on_gradients(at(0))
    layer.optimizer.step()
    layer.method.after_step(at(0))
    assert layer.latent() == pytest.approx([0.5, -0.3, 0.2])
    assert s_of(layer) == pytest.approx(QUARTER)


@given(
    st.lists(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=6), min_size=1, max_size=3),
    st.floats(-200, -(2.0**-20), width=32),
)
def test_what_the_model_holds_is_the_soft_threshold_to_the_bit(layers: list[list[float]], s_init: float) -> None:
    weights = {str(number): torch.tensor(row) for number, row in enumerate(layers)}
    expected = {
        name: weight.sign() * torch.relu(weight.abs() - torch.tensor(s_init).sigmoid())
        for name, weight in weights.items()
    }
    run = ByHand("str", {"s_init": s_init}, weights, epochs=8, weight_decay=0.1)
    run.start(0)
    assert all(torch.equal(weight, expected[name]) for name, weight in run.weights.items())


class Reference(nn.Module):
    """The paper's equation, with autograd to find every derivative."""

    def __init__(self, s_init: float) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(2, 4, 3), nn.Linear(4 * 3 * 3, 3)
        self.s = nn.ParameterList(nn.Parameter(torch.tensor(s_init)) for _ in range(2))

    def sparse(self) -> list[Tensor]:
        return [
            layer.weight.sign() * torch.relu(layer.weight.abs() - torch.sigmoid(s))
            for layer, s in zip((self.conv, self.linear), self.s, strict=True)
        ]

    def forward(self, images: Tensor) -> Tensor:
        conv, linear = self.sparse()
        return F.linear(F.conv2d(images, conv, self.conv.bias).relu().flatten(1), linear, self.linear.bias)


class Pair:
    """The same network trained by the method and by the reference, in double precision."""

    def __init__(self, s_init: float = -3.0, lr: float = 0.1) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).double()
        self.reference = Reference(s_init).double()
        self.reference.conv.load_state_dict(self.model[0].state_dict())
        self.reference.linear.load_state_dict(self.model[3].state_dict())
        self.weights = {f"{number}.weight": self.model[number].weight for number in (0, 3)}
        self.method = Method(
            Config(method="str", s_init=s_init, s_decay=0.05), MaskedParameters(self.weights), epochs=8
        )
        block = SGDBlock(name="sgd", lr=lr, weight_decay=0.01, schedule=LinearSchedule(name="linear"))
        self.optimizer = build_optimizer(self.model, block, self.method.parameter_groups(0.01))
        self.method.masked.attach(self.optimizer)
        biases = [self.reference.conv.bias, self.reference.linear.bias]
        self.theirs = SGD(
            [
                {"params": [self.reference.conv.weight, self.reference.linear.weight], "weight_decay": 0.01},
                {"params": self.reference.s.parameters(), "weight_decay": 0.05},
                {"params": [bias for bias in biases if bias is not None]},
            ],
            lr=lr,
            momentum=0.9,
        )
        self.method.on_epoch_start(at(0))

    def step(self, number: int) -> None:
        noise = torch.Generator().manual_seed(number)
        images = torch.randn(8, 2, 5, 5, generator=noise, dtype=torch.float64)
        labels = torch.randint(3, (8,), generator=noise)
        torch.testing.assert_close(self.model(images), self.reference(images), rtol=0, atol=1e-12)
        self.theirs.zero_grad()
        F.cross_entropy(self.reference(images), labels).backward()
        self.theirs.step()
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(images), labels).backward()
        assert self.method.on_gradients(at(number))
        self.optimizer.step()
        self.method.after_step(at(number))

    def zeros(self) -> int:
        return sum(self.method.masked.zeros().values())


def test_a_run_is_that_of_the_papers_equation_under_autograd() -> None:
    pair, zeros = Pair(), set()
    for number in range(30):
        pair.step(number)
        layers = (pair.reference.conv, pair.reference.linear)
        for index, (name, layer) in enumerate(zip(pair.weights, layers, strict=True)):
            gradient, s_gradient = layer.weight.grad, pair.reference.s[index].grad
            assert pair.method.s.grad is not None
            torch.testing.assert_close(pair.weights[name].grad, gradient, rtol=0, atol=1e-12)
            torch.testing.assert_close(pair.method.s.grad[index], s_gradient, rtol=0, atol=1e-12)
            torch.testing.assert_close(pair.method.latent.weights[name], layer.weight.data, rtol=0, atol=1e-12)
            torch.testing.assert_close(pair.method.s[index], pair.reference.s[index], rtol=0, atol=1e-12)
            torch.testing.assert_close(pair.weights[name].data, pair.reference.sparse()[index].data, rtol=0, atol=1e-12)
        zeros.add(pair.zeros())
    assert pair.method.s[0] != pair.method.s[1], "each layer learns its own"
    assert len(zeros) > 3, "or the test has not seen weights come or go"


def test_the_baked_weights_give_the_logits_of_the_reference() -> None:
    pair = Pair()
    for number in range(10):
        pair.step(number)
    pair.method.finish()
    images = torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    torch.testing.assert_close(pair.model(images), pair.reference(images), rtol=0, atol=1e-12)
    for mask, sparse in zip(pair.method.masked.masks.values(), pair.reference.sparse(), strict=True):
        assert torch.equal(mask, sparse != 0)
        assert 0 < mask.sum() < mask.numel()


def test_the_sparsity_rises_as_s_decays() -> None:
    pair, sparsities = Pair(s_init=-30.0, lr=0.05), []
    for number in range(100):
        pair.step(number)
        if number % 20 == 19:
            sparsities.append(pair.zeros())
    assert sparsities[0] == 0
    assert sparsities == sorted(sparsities)
    assert 90 < sparsities[-1] < 180


def test_a_copy_of_the_state_restores_the_method() -> None:
    layer, other = layer_of([0.5, -0.3, 0.2, -0.1]), layer_of([9.0, 9.0, 9.0, 9.0], s_init=-5.0)
    state, held = copy.deepcopy(layer.method.state_dict()), layer.weight.detach().clone()
    assert layer.step(0, [1.0, 2.0, 3.0, 4.0])
    other.method.load_state_dict(state)
    other.weight.data.copy_(held)
    assert other.latent() == pytest.approx([0.5, -0.3, 0.2, -0.1])
    assert s_of(other) == pytest.approx(QUARTER)
    place = other.method.s
    assert other.step(0, [1.0, 2.0, 3.0, 4.0])
    assert other.optimizer.param_groups[0]["params"][0] is place
    assert (other.values(), other.latent(), s_of(other)) == (layer.values(), layer.latent(), s_of(layer))


def test_an_epochs_record_has_the_true_sparsity_and_the_thresholds() -> None:
    assert layer_of([0.5, -0.3, 0.2, 0.0]).method.metrics() == {
        "mask_sparsity": 0.5,
        "threshold_min": pytest.approx(0.25),
        "threshold_mean": pytest.approx(0.25),
        "threshold_max": pytest.approx(0.25),
    }


@pytest.mark.parametrize("keys", [{"s_init": 0.0}, {"s_decay": -1.0}, {"target": 0.9}, {"pattern": "2:4"}])
def test_keys_that_make_no_sense_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(keys))):
        Config(method="str", **keys)


def test_an_s_that_nothing_moves_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"sparsity.s_decay: without decay s stays at -3200"):
        layer_of([1.0], weight_decay=0.0, s_init=-3200.0)
    with pytest.raises(RecipeError, match=r"sparsity.s_decay: without decay"):
        layer_of([1.0], weight_decay=0.1, s_init=-3200.0, s_decay=0.0).step(0, [0.0])
    layer_of([1.0], weight_decay=0.0, s_init=-10.0)
