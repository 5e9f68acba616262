"""Top-KAST: which weights act, which learn, which stand still, and how the regulariser shrinks them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import ByHand
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from acdc_cli.sparsity.methods.topkast import Config
from acdc_cli.sparsity.sparsifier import Sparsifier

EPOCHS, STEPS = 5, 20
WEIGHTS = [5.0, -4.0, 3.0, -2.0, 1.0, 0.5, -0.25, 0.125, -0.0625, 0.0]
KEYS = {"target": 0.6, "backward_sparsity": 0.3}
A, BEYOND, OUTSIDE = slice(0, 4), slice(4, 7), slice(7, 10)


def densities(method: Sparsifier[Any], epoch: int) -> tuple[float | None, float | None]:
    """Forward and backward."""
    work = method.cost(epoch, 1)
    return work.forward.density, work.backward.density


def config(**keys: Any) -> Config:
    return Config(method="topkast", **KEYS | keys)


def layer_of(
    weight_decay: float = 0.0, optimizer: type[Optimizer] = SGD, values: list[float] = WEIGHTS, **keys: Any
) -> ByHand:
    """Ten weights, of which four act (A), three more learn (BEYOND) and three stand still (OUTSIDE)."""
    run: dict[str, Any] = {"epochs": EPOCHS, "steps": STEPS, "lr": 0.1, "weight_decay": weight_decay}
    momentum = {"momentum": 0.9} if optimizer is SGD else {}
    layer = ByHand("topkast", KEYS | keys, {"fc.weight": [values]}, optimizer=optimizer, **run | momentum)
    layer.start(0)
    return layer


def bias_of(layer: ByHand) -> nn.Parameter:
    """A bias of 8, which the optimiser trains as well."""
    bias = nn.Parameter(torch.tensor([8.0]))
    bias.grad = torch.zeros(1)
    layer.optimizer.add_param_group({"params": [bias]})
    return bias


def test_the_largest_act_and_more_of_the_largest_learn() -> None:
    layer = layer_of()
    assert layer.living() == [0, 1, 2, 3]
    assert layer.learning() == [0, 1, 2, 3, 4, 5, 6]
    assert layer.values() == [5, -4, 3, -2, 0, 0, 0, 0, 0, 0]
    assert layer.latent() == WEIGHTS
    assert all(densities(layer.method, epoch) == (0.4, 0.7) for epoch in range(EPOCHS))


def test_weights_that_learn_without_acting_change_but_do_not_change_the_output() -> None:
    layer, images = layer_of(weight_decay=0.5), torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
    before = F.linear(images, layer.weight)
    layer.method.weight_decay = 0.0  # so that those that act keep their values where their gradients are 0
    assert layer.step(0, [0.0] * 4 + [1.0] * 6)
    assert layer.latent()[BEYOND] == pytest.approx([0.9, 0.4, -0.35])
    assert torch.equal(F.linear(images, layer.weight), before)


def test_the_regulariser_worked_by_hand() -> None:
    layer = layer_of(weight_decay=0.5)
    assert layer.step(0, 1.0)
    # 0.1 less by the gradient; then A shrinks by 0.1 · 0.5, the others that learn by 0.1 · 0.5 / (1 - 0.6)
    acting = [4.9 * 0.95, -4.1 * 0.95, 2.9 * 0.95, -2.1 * 0.95]
    assert layer.latent()[A] == pytest.approx(acting)
    assert layer.latent()[BEYOND] == pytest.approx([0.9 * 0.875, 0.4 * 0.875, -0.35 * 0.875])
    assert layer.latent()[OUTSIDE] == WEIGHTS[OUTSIDE]
    assert layer.values() == pytest.approx([*acting, *[0.0] * 6])
    assert layer.values()[4:] == [0.0] * 6


def test_the_regulariser_is_no_part_of_momentum() -> None:
    layer = layer_of(weight_decay=0.5)
    assert layer.step(0, 1.0)
    assert layer.momentum() == [1.0] * 7 + [0.0] * 3
    assert layer.step(1, 0.0)
    assert layer.momentum() == pytest.approx([0.9] * 7 + [0.0] * 3)
    # 4.655 - 0.1 · 0.9, shrunk once more
    assert layer.latent()[0] == pytest.approx((4.655 - 0.09) * 0.95)


def test_the_decay_of_other_parameters_is_the_optimisers() -> None:
    layer = layer_of(weight_decay=0.5)
    bias = bias_of(layer)
    assert [group["weight_decay"] for group in layer.optimizer.param_groups] == [0.0, 0.0]
    assert layer.optimizer.param_groups[0]["params"] == [layer.weight]
    assert layer.step(0, 1.0)
    assert bias.item() == 8.0


@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_weights_outside_stand_still_to_the_bit(optimizer: type[Optimizer]) -> None:
    layer = layer_of(weight_decay=0.1, optimizer=optimizer, every=1000)
    for number in range(10):
        assert layer.step(number, number - 4.0)
    assert layer.latent()[OUTSIDE] == WEIGHTS[OUTSIDE]
    assert not torch.isclose(torch.tensor(layer.latent()[BEYOND]), torch.tensor(WEIGHTS[BEYOND])).any()


def test_one_that_grows_comes_to_act_with_the_value_it_has() -> None:
    layer = layer_of(every=2)
    assert layer.step(0, [0.0] * 4 + [-15.0] + [0.0] * 5)  # 1 + 0.1 · 15
    assert layer.living() == [0, 1, 2, 3]
    assert layer.step(1, 0.0)  # + 0.1 · 0.9 · 15 by momentum
    assert layer.latent()[4] == pytest.approx(3.85)
    assert layer.living() == [0, 1, 2, 4]
    assert layer.values() == pytest.approx([5, -4, 3, 0, 3.85, 0, 0, 0, 0, 0])
    assert layer.latent()[3] == -2, "the one whose place it took learns on"


def test_one_that_shrinks_below_those_outside_stops_and_loses_its_momentum() -> None:
    layer = layer_of(every=1)
    assert layer.step(0, [0.0] * 5 + [4.5] + [0.0] * 4)  # 0.5 - 0.45: less than 0.125 and 0.0625
    assert layer.learning() == [0, 1, 2, 3, 4, 6, 7]
    assert layer.latent()[5] == pytest.approx(0.05)
    assert not any(layer.momentum())
    assert layer.step(1, 1.0)
    assert layer.latent()[5] == pytest.approx(0.05)
    assert layer.latent()[7] == pytest.approx(0.025)


def test_a_new_ranking_changes_the_regulariser() -> None:
    layer = layer_of(weight_decay=0.5, every=2)
    assert layer.step(0, [0.0] * 4 + [-15.0] + [0.0] * 5)
    assert layer.step(1, 0.0)
    before = layer.latent()
    assert layer.living() == [0, 1, 2, 4]
    layer.optimizer.state[layer.weight]["momentum_buffer"].zero_()
    assert layer.step(2, 0.0)
    shrunk = [0.95, 0.95, 0.95, 0.875, 0.95, 0.875, 0.875]
    assert [now / then for now, then in zip(layer.latent()[:7], before, strict=False)] == pytest.approx(shrunk)


def test_a_backward_sparsity_of_zero_trains_all_weights() -> None:
    layer = layer_of(backward_sparsity=0.0)
    assert layer.step(0, 1.0)
    assert layer.learning() == list(range(10))
    assert layer.latent() == pytest.approx([value - 0.1 for value in WEIGHTS])
    assert layer.living() == [0, 1, 2, 3]
    assert densities(layer.method, 0) == (0.4, 1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["weight", "bias"])
def test_a_bad_step_moves_nothing_shrinks_nothing_and_ranks_nothing(bad: float, where: str) -> None:
    layer = layer_of(weight_decay=0.5, every=3)
    bias = bias_of(layer)
    assert layer.step(0, [0.0] * 4 + [-15.0] + [0.0] * 5)
    assert layer.step(1, 0.0)
    assert layer.latent()[4] > 2, "due to act after the third step"
    before = layer.latent(), layer.values(), layer.momentum()
    bias.grad = torch.tensor([bad if where == "bias" else 0.0])
    assert layer.step(2, [bad, *[1.0] * 9] if where == "weight" else 1.0)
    assert (layer.latent(), layer.values(), layer.momentum()) == before
    bias.grad = torch.zeros(1)
    assert layer.living() == [0, 1, 2, 3]
    for number in range(3, 6):
        assert layer.step(number, 0.0)
    assert 4 in layer.living()


def test_the_weights_are_ranked_every_so_many_steps_to_the_end_but_not_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, ranked = layer_of(every=10), []
    monkeypatch.setattr(layer.method.masked, "set", lambda masks, backward: ranked.append(number))
    for number in range(EPOCHS * STEPS):
        assert layer.step(number, 1.0)
    assert ranked == list(range(9, 99, 10))


@given(
    values=st.lists(st.integers(-3, 3), min_size=13, max_size=13),
    target=st.sampled_from([0.1, 0.5, 0.9, 0.999]),
    share=st.sampled_from([0.0, 0.3, 0.9, 0.99]),
    distribution=st.sampled_from(["uniform", "global", "erk"]),
    layers=st.sampled_from([{}, {"a": 0.99}]),
)
def test_what_acts_learns_and_both_counts_are_exact(
    values: list[int], target: float, share: float, distribution: str, layers: dict[str, float]
) -> None:
    flat = torch.tensor(values, dtype=torch.float32)
    weights = {"a.weight": flat[:12].view(3, 4), "b.weight": flat[12:].view(1, 1)}
    keys = {"target": target, "backward_sparsity": share * target, "distribution": distribution, "layers": layers}
    run = ByHand("topkast", keys, weights, epochs=EPOCHS, steps=STEPS)
    run.start(0)
    for name, mask in run.masked.masks.items():
        backward = run.masked.backward_masks[name]
        assert not (mask & ~backward).any()
        magnitudes = weights[name].abs()
        if mask.any() and not mask.all():
            assert magnitudes[mask].min() >= magnitudes[~mask].max()
        if backward.any() and not backward.all():
            assert magnitudes[backward].min() >= magnitudes[~backward].max()
    acting, learning = (
        sum(int(mask.sum()) for mask in masks.values()) / 13 for masks in (run.masked.masks, run.masked.backward_masks)
    )
    assert densities(run.method, 0) == (acting, learning)


def test_blocks_act_and_learn_whole() -> None:
    values = [1.0, 1, 9, 9, 5, 5, 0, 0, 3, 3]
    layer = layer_of(values=values, pattern="block2", target=0.6, backward_sparsity=0.2)
    assert layer.living() == [2, 3, 4, 5]
    assert layer.learning() == [0, 1, 2, 3, 4, 5, 8, 9]


def test_two_of_four_act_while_all_learn() -> None:
    layer = layer_of(values=[1.0, 2, 3, 4, 8, 7, 6, 5], pattern="2:4", target=0.5, backward_sparsity=0.0)
    assert layer.living() == [2, 3, 4, 5]
    assert layer.learning() == list(range(8))
    assert densities(layer.method, 0) == (0.5, 1.0)


@pytest.mark.parametrize("backward", [0.6, 0.9])
def test_a_backward_sparsity_that_leaves_no_room_is_refused(backward: float) -> None:
    with pytest.raises(
        ValidationError, match=rf"backward_sparsity: expected less than the target, 0.6, found {backward:g}"
    ):
        config(backward_sparsity=backward)


def test_nothing_pruned_is_no_mistake() -> None:
    assert config(target=0.0, backward_sparsity=0.0).target == 0


def test_a_pattern_of_one_sparsity_is_refused_where_two_are_needed() -> None:
    with pytest.raises(ValidationError, match="pattern: 2:4 has a single sparsity"):
        config(pattern="2:4", target=0.5, backward_sparsity=0.25)
