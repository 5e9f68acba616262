from __future__ import annotations

import pytest
import torch
from torch import nn

from acdc_cli.recipe.blocks.optim import LAMBBlock, LARSBlock, LinearSchedule, SGDBlock
from acdc_cli.training.optimizers import build_optimizer, clip_gradients, parameter_groups
from acdc_cli.training.precision import Precision


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.layer_norm = nn.LayerNorm(2)
        self.attention = nn.MultiheadAttention(2, 1)
        self.token = nn.Parameter(nn.Linear(2, 2).weight.detach())
        self.head = nn.Linear(2, 2)


def names(model: nn.Module, group: dict[str, object]) -> set[str]:
    chosen = {id(parameter) for parameter in group["params"]}  # type: ignore[attr-defined]
    return {name for name, parameter in model.named_parameters() if id(parameter) in chosen}


def test_only_weights_of_convolutions_linear_layers_and_attention_decay() -> None:
    model = Small()
    decayed, rest = parameter_groups(model, 0.1, decay_norm_and_bias=False)
    assert names(model, decayed) == {
        "conv.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "head.weight",
    }
    assert decayed["weight_decay"] == 0.1
    assert rest["weight_decay"] == 0.0


def test_every_parameter_is_in_one_group() -> None:
    model = Small()
    decayed, rest = parameter_groups(model, 0.1, decay_norm_and_bias=False)
    assert names(model, decayed) | names(model, rest) == {name for name, _ in model.named_parameters()}
    assert not names(model, decayed) & names(model, rest)


def test_p1_decays_norm_and_bias_too() -> None:
    decayed, rest = parameter_groups(Small(), 2**-15, decay_norm_and_bias=True)
    assert decayed["weight_decay"] == rest["weight_decay"] == 2**-15


def test_a_parameter_that_somebody_else_has_grouped_is_in_no_other_group() -> None:
    model = Small()
    threshold = nn.Parameter(model.token.detach().clone())
    taken = {"params": [model.conv.weight, threshold], "weight_decay": 0.5}
    block = SGDBlock(name="sgd", lr=0.1, weight_decay=0.1, schedule=LinearSchedule(name="linear"))
    optimizer = build_optimizer(model, block, [taken])
    first, decayed, rest = optimizer.param_groups
    assert [first["weight_decay"], decayed["weight_decay"], rest["weight_decay"]] == [0.5, 0.1, 0.0]
    assert "conv.weight" not in names(model, decayed) | names(model, rest)
    # fused SGD would leave the buffer of a skipped first step as it finds it
    assert not optimizer.state[threshold]["momentum_buffer"].any()


def test_clipping_takes_a_methods_own_parameters_and_the_models_together() -> None:
    model, threshold = nn.Linear(1, 1, bias=False), nn.Parameter(torch.zeros(1))
    block = SGDBlock(name="sgd", lr=0.1, schedule=LinearSchedule(name="linear"))
    optimizer = build_optimizer(model, block, [{"params": [threshold], "weight_decay": 0.0}])
    model.weight.grad, threshold.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
    clip_gradients(optimizer, 1.0)
    assert [model.weight.grad.item(), threshold.grad.item()] == pytest.approx([0.6, 0.8], rel=1e-5)


def test_a_weight_that_two_modules_share_is_counted_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    decayed, rest = parameter_groups(model, 0.1, decay_norm_and_bias=False)
    assert len(decayed["params"]) == 1  # type: ignore[arg-type]
    assert rest["params"] == []


SCHEDULE = LinearSchedule(name="linear")


def stepped(block: LARSBlock | LAMBBlock, *gradients: list[float]) -> nn.Linear:
    """Weights 3 and 4, whose norm is 5, and bias 1 after a step with each of these gradients; the bias's is 1."""
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0]]))
        model.bias.fill_(1.0)
    optimizer = build_optimizer(model, block)
    for gradient in gradients:
        model.weight.grad, model.bias.grad = torch.tensor([gradient]), torch.ones(1)
        optimizer.step()
    return model


def test_lars_takes_the_first_two_steps_as_worked_by_hand() -> None:
    block = LARSBlock(name="lars", lr=2.0, momentum=0.5, trust_coefficient=0.5, weight_decay=0.1, schedule=SCHEDULE)
    # ratio 0.5 · 5 / (2 + 0.1 · 5) = 1: momentum 2 + 0.1 · 3 and 0.1 · 4
    model = stepped(block, [2.0, 0.0])
    assert model.weight.tolist()[0] == pytest.approx([3 - 2 * 2.3, 4 - 2 * 0.4])
    assert model.bias.item() == -1, "the bias does not decay: it takes the rate as it is"
    # the weights are -1.6 and 3.2, of norm 1.6 √5
    norm = 1.6 * 5**0.5
    ratio = 0.5 * norm / (2 + 0.1 * norm)
    momentum = [0.5 * 2.3 + ratio * (2 - 0.16), 0.5 * 0.4 + ratio * 0.32]
    model = stepped(block, [2.0, 0.0], [2.0, 0.0])
    assert model.weight.tolist()[0] == pytest.approx([-1.6 - 2 * momentum[0], 3.2 - 2 * momentum[1]])


def test_lamb_moves_a_layer_by_its_norm_and_a_bias_by_adams_step() -> None:
    block = LAMBBlock(name="lamb", lr=0.1, betas=(0.9, 0.99), eps=1e-12, weight_decay=0.0, schedule=SCHEDULE)
    # m / √v is 0.1 g / (0.1 |g|), so 1 and -1, of norm √2; the step is 0.1 · 5 in their direction
    model = stepped(block, [7.0, -0.001])
    assert model.weight.tolist()[0] == pytest.approx([3 - 0.5 / 2**0.5, 4 + 0.5 / 2**0.5])
    assert model.bias.item() == pytest.approx(0.9)


def test_lamb_adds_weight_decay_before_it_measures_the_step() -> None:
    block = LAMBBlock(name="lamb", lr=0.1, betas=(0.9, 0.99), eps=1e-12, weight_decay=1.0, schedule=SCHEDULE)
    # 1 + 3 and -1 + 4, of norm 5
    assert stepped(block, [7.0, -0.001]).weight.tolist()[0] == pytest.approx([3 - 0.1 * 4, 4 - 0.1 * 3])


@pytest.mark.parametrize("name", ["lars", "lamb"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("taken", [False, True])
def test_every_layer_has_its_ratio_whether_or_not_it_decays(name: str, weight_decay: float, taken: bool) -> None:
    model = Small()
    keys = {"name": name, "lr": 0.1, "weight_decay": weight_decay, "schedule": SCHEDULE}
    block = (LARSBlock if name == "lars" else LAMBBlock).model_validate(keys)
    first = [{"params": [model.conv.weight], "weight_decay": 0.0}] if taken else []
    groups = build_optimizer(model, block, first).param_groups
    assert [group["always_adapt"] for group in groups] == [True] * len(first) + [True, False]


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_infinite_gradients_leave_every_bit_of_weights_and_state_and_others_are_taken(name: str) -> None:
    keys = {"name": name, "lr": 0.1, "weight_decay": 0.1, "schedule": SCHEDULE}
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Linear(4, 2)).to(memory_format=torch.channels_last)
    plain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Linear(4, 2)).to(memory_format=torch.channels_last)
    plain.load_state_dict(model.state_dict())
    block = (LARSBlock if name == "lars" else LAMBBlock).model_validate(keys)
    scaled, unscaled = build_optimizer(model, block), build_optimizer(plain, block)
    precision = Precision("fp32", torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for number in range(6):
        bad = number in (0, 3)
        for one, other in zip(model.parameters(), plain.parameters(), strict=True):
            gradient = torch.randn(one.shape, generator=generator)
            one.grad, other.grad = gradient.clone(), gradient
        if bad:
            model[1].bias.grad.fill_(float("nan"))
        else:
            unscaled.step()
        precision.backward(torch.zeros((), requires_grad=True))
        precision.unscale(scaled)
        precision.step(scaled)
        for one, other in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(one, other)
            for key, value in unscaled.state[other].items():
                assert torch.equal(scaled.state[one][key], value), key
