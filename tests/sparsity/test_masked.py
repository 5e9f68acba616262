"""Masked weights, gradients and optimiser state."""

import io

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from acdc_cli.errors import CheckpointError
from acdc_cli.recipe.blocks.optim import Optim
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.training.optimizers import build_optimizer

MASKS = {
    "a": torch.tensor([[True, False, True], [False, True, True]]),
    "b": torch.tensor([False, True]),
}


def weights() -> dict[str, nn.Parameter]:
    return {
        "a": nn.Parameter(torch.tensor([[1.0, -2.0, 3.0], [4.0, -5.0, 0.0]])),
        "b": nn.Parameter(torch.tensor([6.0, 7.0])),
    }


def masked_with_gradients() -> MaskedParameters:
    masked = MaskedParameters(weights())
    for weight in masked.parameters.values():
        weight.grad = torch.ones_like(weight)
    return masked


def step(masked: MaskedParameters, optimizer: Optimizer) -> None:
    """A step on sum((w + 1)²): every weight has a gradient, masked ones too."""
    optimizer.zero_grad()
    sum((weight + 1).square().sum() for weight in masked.parameters.values()).backward()
    masked.apply_to_gradients()
    optimizer.step()


def test_new_masks_let_every_weight_live() -> None:
    masked = MaskedParameters(weights())
    assert (masked.total, masked.sparsity()) == (8, 0.0)
    assert all(mask.all() for mask in masked.masks.values())
    assert masked.zeros() == {"a": 1, "b": 0}


def test_setting_masks_zeroes_weights_and_gradients() -> None:
    masked = masked_with_gradients()
    masked.set(MASKS)
    assert masked.parameters["a"].tolist() == [[1, 0, 3], [0, -5, 0]]
    assert masked.parameters["b"].tolist() == [0, 7]
    assert masked.parameters["a"].grad.tolist() == [[1, 0, 1], [0, 1, 1]]
    assert masked.parameters["b"].grad.tolist() == [0, 1]
    assert masked.sparsity() == 3 / 8
    assert masked.zeros() == {"a": 3, "b": 1}


def test_filling_frees_every_weight_as_a_zero() -> None:
    masked = masked_with_gradients()
    masked.set(MASKS)
    masked.fill()
    assert masked.sparsity() == 0
    assert masked.parameters["b"].tolist() == [0, 7]
    masked.parameters["b"].grad = torch.ones(2)
    masked.apply_to_gradients()
    assert masked.parameters["b"].grad.tolist() == [1, 1]


def test_applying_zeroes_what_something_else_wrote_to_masked_weights() -> None:
    masked = MaskedParameters(weights())
    masked.set(MASKS)
    with torch.no_grad():
        masked.parameters["b"].fill_(9)
    masked.apply()
    assert masked.parameters["b"].tolist() == [0, 9]


def test_weights_without_gradient_are_left_alone() -> None:
    masked = MaskedParameters(weights())
    masked.set(MASKS)
    masked.apply_to_gradients()
    masked.parameters["b"].grad = torch.ones(2)
    masked.apply_to_gradients()
    assert masked.parameters["a"].grad is None
    assert masked.parameters["b"].grad.tolist() == [0, 1]


def test_gradients_are_masked_by_one_fused_call_and_by_none_while_nothing_is_masked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    fused = torch._foreach_mul_
    monkeypatch.setattr(torch, "_foreach_mul_", lambda left, right: calls.append(len(left)) or fused(left, right))
    masked = masked_with_gradients()
    masked.apply_to_gradients()
    assert calls == []
    masked.set(MASKS)
    calls.clear()
    masked.apply_to_gradients()
    assert calls == [2]


def test_masked_weights_rank_below_living_zeros() -> None:
    masked = MaskedParameters(weights())
    assert masked.magnitudes()["a"].tolist() == [[1, 2, 3], [4, 5, 0]]
    masked.set(MASKS)
    assert masked.magnitudes()["a"].tolist() == [[1, -1, 3], [-1, 5, 0]]
    assert masked.magnitudes()["b"].tolist() == [-1, 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_happens_in_place_in_the_layout_and_type_of_the_weights(dtype: torch.dtype) -> None:
    convolution = nn.Conv2d(4, 6, 3).to(dtype=dtype, memory_format=torch.channels_last)
    weight = convolution.weight
    masked = MaskedParameters({"weight": weight})
    storages = weight.data_ptr(), masked.masks["weight"].data_ptr()
    mask = torch.rand(6, 4, 3, 3) < 0.5
    masked.set({"weight": mask})
    masked.load_state_dict({"forward": {"weight": mask}})
    masked.fill()
    assert masked.parameters["weight"] is convolution.weight is weight
    assert (weight.data_ptr(), masked.masks["weight"].data_ptr()) == storages
    assert masked.masks["weight"].stride() == weight.stride() == (36, 1, 12, 4)
    assert weight.dtype == dtype
    assert torch.equal(weight == 0, ~mask)


@pytest.mark.parametrize("nesterov", [False, True])
def test_masked_weights_and_momentum_stay_zero_under_weight_decay_with_sgd(nesterov: bool) -> None:
    masked = MaskedParameters(weights())
    optimizer = SGD(masked.parameters.values(), lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=nesterov)
    check_that_masked_entries_stay_zero(masked, optimizer, ["momentum_buffer"])


def test_masked_weights_and_both_averages_stay_zero_under_weight_decay_with_adamw() -> None:
    masked = MaskedParameters(weights())
    optimizer = AdamW(masked.parameters.values(), lr=0.1, weight_decay=0.1)
    check_that_masked_entries_stay_zero(masked, optimizer, ["exp_avg", "exp_avg_sq"])


def check_that_masked_entries_stay_zero(masked: MaskedParameters, optimizer: Optimizer, keys: list[str]) -> None:
    masked.attach(optimizer)
    step(masked, optimizer)
    assert all(optimizer.state[weight][key].all() for weight in masked.parameters.values() for key in keys)
    living = masked.parameters["b"][1].item()
    masked.set(MASKS)
    for _ in range(4):
        for name, weight in masked.parameters.items():
            for tensor in [weight, weight.grad, *(optimizer.state[weight][key] for key in keys)]:
                assert not tensor[~MASKS[name]].any()
        step(masked, optimizer)
    assert masked.parameters["b"][1].item() != living
    assert all(
        optimizer.state[weight][key][MASKS[name]].all() for name, weight in masked.parameters.items() for key in keys
    )


def test_setting_masks_keeps_the_state_of_living_weights_and_the_step_count() -> None:
    masked = MaskedParameters({"a": nn.Parameter(torch.tensor([3.0, 4.0]))})
    optimizer = AdamW(masked.parameters.values(), lr=0.1)
    masked.attach(optimizer)
    step(masked, optimizer)
    average = optimizer.state[masked.parameters["a"]]["exp_avg"][1].item()
    masked.set({"a": torch.tensor([False, True])})
    state = optimizer.state[masked.parameters["a"]]
    assert (state["exp_avg"].tolist(), state["step"].item()) == ([0, average], 1)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "lamb"])
def test_resetting_momentum_forgets_the_state_of_every_parameter(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    masked = MaskedParameters({"0.weight": model[0].weight})
    block = TypeAdapter(Optim).validate_python({"name": name, "lr": 0.1, "schedule": {"name": "cosine"}})
    optimizer = build_optimizer(model, block)
    masked.attach(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(any(value.any() for value in optimizer.state[parameter].values()) for parameter in model.parameters())
    places = [value.data_ptr() for state in optimizer.state.values() for value in state.values()]
    masked.reset_momentum()
    assert len(places) == (12 if name == "adamw" else 8 if name == "lamb" else 4)
    assert not any(value.any() for state in optimizer.state.values() for value in state.values())
    assert [value.data_ptr() for state in optimizer.state.values() for value in state.values()] == places


def test_adamw_takes_its_first_step_again_after_a_reset() -> None:
    # The first step of Adam is lr · sign(gradient), whatever the gradient's size.
    weight = nn.Parameter(torch.tensor([5.0, -5.0]))
    masked = MaskedParameters({"a": weight})
    optimizer = AdamW([weight], lr=0.5, weight_decay=0)
    masked.attach(optimizer)
    for gradient in ([1.0, -1.0], [0.1, 10.0]):
        before = weight.detach().clone()
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        torch.testing.assert_close(before - weight.detach(), 0.5 * weight.grad.sign())
        masked.reset_momentum()


def test_what_an_optimizers_state_holds_besides_tensors_stays_as_it_is() -> None:
    masked = masked_with_gradients()
    optimizer = SGD(masked.parameters.values(), lr=0.1, momentum=0.9)
    optimizer.step()
    masked.attach(optimizer)
    state = optimizer.state[masked.parameters["a"]]
    state["steps"] = 3
    masked.set(MASKS)
    assert state["steps"] == 3
    assert state["momentum_buffer"].tolist() == [[1, 0, 1], [0, 1, 1]]


def test_an_optimizer_without_state_is_left_without() -> None:
    masked = MaskedParameters(weights())
    optimizer = SGD(masked.parameters.values(), lr=0.1, momentum=0.9)
    masked.attach(optimizer)
    masked.set(MASKS)
    masked.reset_momentum()
    assert optimizer.state_dict()["state"] == {}


def saved_and_loaded(state: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_masks_come_back_from_a_file_and_mask_again() -> None:
    masked = MaskedParameters(weights())
    masked.set(MASKS)
    state = saved_and_loaded(masked.state_dict())
    other = masked_with_gradients()
    other.load_state_dict(state)
    assert all(torch.equal(other.masks[name], mask) for name, mask in MASKS.items())
    assert other.sparsity() == 3 / 8
    other.apply_to_gradients()
    assert other.parameters["b"].grad.tolist() == [0, 1]


BACKWARD = {"a": torch.ones(2, 3, dtype=torch.bool), "b": torch.tensor([False, True])}


def test_gradients_and_optimiser_state_may_live_where_weights_do_not() -> None:
    masked = MaskedParameters(weights())
    optimizer = SGD(masked.parameters.values(), lr=0.0, momentum=0.9)
    masked.attach(optimizer)
    step(masked, optimizer)
    masked.set(MASKS, BACKWARD)
    momentum = [optimizer.state[weight]["momentum_buffer"] != 0 for weight in masked.parameters.values()]
    assert all(torch.equal(alive, mask) for alive, mask in zip(momentum, BACKWARD.values(), strict=True))
    for weight in masked.parameters.values():
        weight.grad = torch.ones_like(weight)
    masked.apply_to_gradients()
    for name, weight in masked.parameters.items():
        assert torch.equal(weight.grad == 1, BACKWARD[name])
        assert not weight[~MASKS[name]].any()
    assert masked.sparsity() == 3 / 8


def test_masks_that_are_set_or_filled_without_backward_masks_are_those_of_gradients_again() -> None:
    masked = masked_with_gradients()
    masked.set(MASKS, BACKWARD)
    assert masked.backward_masks["a"].all()
    masked.set(MASKS)
    assert masked.backward_masks is masked.masks
    masked.set(MASKS, BACKWARD)
    masked.fill()
    assert masked.backward_masks["b"].all()
    masked.parameters["b"].grad = torch.ones(2)
    masked.apply_to_gradients()
    assert masked.parameters["b"].grad.tolist() == [1, 1]


def test_backward_masks_come_back_from_a_file_and_mask_again() -> None:
    masked = MaskedParameters(weights())
    masked.set(MASKS, BACKWARD)
    other = masked_with_gradients()
    other.load_state_dict(saved_and_loaded(masked.state_dict()))
    assert all(torch.equal(other.backward_masks[name], mask) for name, mask in BACKWARD.items())
    other.apply_to_gradients()
    assert [other.parameters[name].grad.count_nonzero().item() for name in ("a", "b")] == [6, 1]


@pytest.mark.parametrize(
    ("state", "first"),
    [
        ({"a": MASKS["a"]}, "b"),
        ({**MASKS, "c": MASKS["b"]}, "c"),
        ({"a": MASKS["a"].T, "b": MASKS["b"]}, "a"),
    ],
)
def test_masks_of_another_model_are_refused(state: dict[str, Tensor], first: str) -> None:
    with pytest.raises(CheckpointError, match=f"1 differ, the first is {first}; resume with the model"):
        MaskedParameters(weights()).load_state_dict({"forward": state})


def test_nothing_to_prune_is_fine() -> None:
    masked = MaskedParameters({})
    masked.set({})
    masked.apply_to_gradients()
    assert (masked.sparsity(), masked.zeros(), masked.state_dict()) == (0.0, {}, {"forward": {}})
