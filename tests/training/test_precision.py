from __future__ import annotations

import pytest
import torch
from torch import nn

from acdc_cli.errors import RunError
from acdc_cli.recipe.blocks.optim import AdamWBlock, LAMBBlock, LARSBlock, LinearSchedule, SGDBlock
from acdc_cli.training.optimizers import build_optimizer
from acdc_cli.training.precision import Precision, PrecisionName, choose_device

CPU = torch.device("cpu")
SCHEDULE = LinearSchedule(name="linear")
OPTIMISERS = {
    "sgd": SGDBlock(name="sgd", lr=0.5, momentum=0.5, weight_decay=0.25, schedule=SCHEDULE),
    "adamw": AdamWBlock(name="adamw", lr=0.5, weight_decay=0.25, schedule=SCHEDULE),
    "lars": LARSBlock(name="lars", lr=0.5, momentum=0.5, weight_decay=0.25, schedule=SCHEDULE),
    "lamb": LAMBBlock(name="lamb", lr=0.5, weight_decay=0.25, schedule=SCHEDULE),
}


def step(model: nn.Linear, optimizer: torch.optim.Optimizer, precision: Precision, gradient: list[float]) -> None:
    optimizer.zero_grad(set_to_none=True)
    precision.backward((model.weight * torch.tensor([gradient])).sum())
    precision.unscale(optimizer)
    precision.step(optimizer)


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("optim", OPTIMISERS)
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_step_with_a_non_finite_gradient_changes_nothing(name: PrecisionName, optim: str, bad: float) -> None:
    def run(gradients: list[list[float]]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model = nn.Linear(2, 1, bias=False)
        nn.init.ones_(model.weight)
        optimizer = build_optimizer(model, OPTIMISERS[optim])
        precision = Precision(name, CPU)
        for gradient in gradients:
            step(model, optimizer, precision, gradient)
        return model.weight.detach(), list(optimizer.state[model.weight].values())

    weights, state = run([[1.0, bad], [1.0, 2.0], [bad, 1.0], [3.0, 1.0]])
    expected, expected_state = run([[1.0, 2.0], [3.0, 1.0]])
    assert torch.equal(weights, expected)
    assert all(torch.equal(actual, wanted) for actual, wanted in zip(state, expected_state, strict=True))


def test_sgd_takes_the_first_two_steps_as_worked_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = build_optimizer(model, OPTIMISERS["sgd"])
    precision = Precision("fp32", CPU)
    step(model, optimizer, precision, [0.75])
    assert model.weight.item() == 0.5  # momentum 0.75 + 0.25 · 1 = 1, weight 1 - 0.5 · 1
    step(model, optimizer, precision, [0.375])
    assert model.weight.item() == 0.0  # momentum 0.5 · 1 + 0.375 + 0.25 · 0.5 = 1


def test_the_scale_of_fp16_is_resumed_and_other_precisions_have_none() -> None:
    first, resumed = Precision("fp16", CPU), Precision("fp16", CPU)
    model = nn.Linear(2, 1, bias=False)
    step(model, build_optimizer(model, OPTIMISERS["sgd"]), first, [1.0, float("inf")])
    assert first.state_dict()["scale"] == 2.0**15
    # of a run that began with another precision
    resumed.load_state_dict(Precision("fp32", CPU).state_dict())
    assert resumed.state_dict()["scale"] == 2.0**16
    resumed.load_state_dict(first.state_dict())
    assert resumed.state_dict() == first.state_dict()


def test_auto_is_fp32_on_the_cpu() -> None:
    assert Precision("auto", CPU).name == "fp32"


def test_bf16_computes_in_bfloat16() -> None:
    with Precision("bf16", CPU).autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_unless_it_is_asked_for_cuda_does_not_round_the_factors_of_float32_products(
    name: PrecisionName,
) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    Precision(name, CPU)
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def test_tf32_is_refused_on_the_cpu() -> None:
    with pytest.raises(RunError, match="--set precision=fp32"):
        Precision("tf32", CPU)


def test_cuda_that_is_not_there_is_an_error_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunError, match="--set device=cpu"):
        choose_device("cuda")
    assert choose_device("auto") == CPU
