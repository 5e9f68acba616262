from __future__ import annotations

import pytest
import torch
from torch import nn

from acdc_cli.recipe.schema import LinearSchedule, SGDBlock
from acdc_cli.training.optim import build_optimizer, clip_gradients, parameter_groups


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
