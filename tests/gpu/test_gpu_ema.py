"""The average of the weights, and LARS and LAMB, where they run without the host: run with `pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path

import gpu_device
import pytest
import torch
from gpu_device import DEVICE, Resident, host_never_waits
from torch import Tensor, nn

from acdc_cli.jobs import setup
from acdc_cli.jobs.training_run import assemble
from acdc_cli.recipe.blocks.optim import LAMBBlock, LARSBlock, LinearSchedule
from acdc_cli.recipe.load import load
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.training.ema import Average
from acdc_cli.training.optimizers import build_optimizer
from acdc_cli.training.precision import Precision, PrecisionName
from acdc_cli.training.trainer import Trainer

pytestmark = gpu_device.marks

SCHEDULE = LinearSchedule(name="linear")
BLOCKS: dict[str, LARSBlock | LAMBBlock] = {
    "lars": LARSBlock(name="lars", lr=0.5, momentum=0.5, weight_decay=0.25, schedule=SCHEDULE),
    "lamb": LAMBBlock(name="lamb", lr=0.5, weight_decay=0.25, schedule=SCHEDULE),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).to(
        DEVICE, memory_format=torch.channels_last
    )


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(
        torch.equal(one[name].detach().view(torch.int32), other[name].detach().view(torch.int32)) for name in one
    )


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_bad_step_of_a_large_batch_optimiser_changes_nothing(name: str, precision: PrecisionName, bad: float) -> None:
    def run(gradients: list[list[float]]) -> list[Tensor]:
        model = nn.Linear(2, 1, bias=False, device=DEVICE)
        nn.init.ones_(model.weight)
        optimizer, here = build_optimizer(model, BLOCKS[name]), Precision(precision, DEVICE)
        for gradient in gradients:
            optimizer.zero_grad(set_to_none=True)
            here.backward((model.weight * torch.tensor([gradient], device=DEVICE)).sum())
            here.unscale(optimizer)
            here.step(optimizer)
        return [model.weight.detach(), *optimizer.state[model.weight].values()]

    actual = run([[1.0, bad], [1.0, 2.0], [bad, 1.0], [3.0, 1.0]])
    expected = run([[1.0, 2.0], [3.0, 1.0]])
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


@pytest.mark.parametrize("name", BLOCKS)
def test_neither_optimiser_nor_average_makes_the_host_wait(name: str) -> None:
    model = network()
    masked = MaskedParameters({"4.weight": model[4].weight})
    optimizer, precision = build_optimizer(model, BLOCKS[name]), Precision("bf16", DEVICE)
    average = Average(model, masked, decay=0.9)
    masked.set({"4.weight": torch.rand(5, 288, device=DEVICE) < 0.5})
    images = torch.randn(4, 3, 8, 8, device=DEVICE)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision.autocast():
            loss = model(images).square().mean()
        precision.backward(loss)
        precision.unscale(optimizer)
        masked.apply_to_gradients()
        precision.step(optimizer)
        average.update(0)

    step()
    with host_never_waits():
        for _ in range(3):
            step()
    mask = masked.masks["4.weight"]
    assert not model[4].weight[~mask].any()
    assert not average._pruned["4.weight"][~mask].any()
    assert all(not value[~mask].any() for value in optimizer.state[model[4].weight].values())


# what the compiler has to say about this device and this Python
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_run_judges_its_average_without_compiling_anew(tmp_path: Path, compiled: bool) -> None:
    keys = ["epochs=4", "ema.decay=0.5", f"compile={str(compiled).lower()}", f"device={DEVICE.type}"]
    phases = ("warmup", "sparse", "dense", "last_dense", "last_sparse")
    recipe = load("demo", [*keys, "optim.schedule.warmup_epochs=0", *(f"sparsity.{each}_epochs=1" for each in phases)])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    ready, loader = setup.build(recipe, 10), Resident(2 * 32, 32)
    parts = assemble(recipe, ready, loader, loader)
    run = RunDir(tmp_path / "run")
    run.start("", "", {})
    trainer = Trainer(parts, run)
    graphs: list[int] = []
    judge = trainer._validation.of_average

    def counted() -> dict[str, float | None]:
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        judged = judge()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"] - before)
        return judged

    trainer._validation.of_average = counted  # type: ignore[method-assign]
    summary = trainer.fit()
    assert graphs == [0] * 4
    assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) == compiled
    assert summary["sparse"]["ema_sparsity"] == summary["sparse"]["sparsity"] == pytest.approx(0.9, abs=1e-4)


def test_a_swap_gives_back_every_bit() -> None:
    model = network()
    average = Average(model, MaskedParameters({"4.weight": model[4].weight}), decay=0.5)
    average.update(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    before = {name: value.clone() for name, value in model.named_parameters()}
    with average.installed():
        assert not same(before, dict(model.named_parameters()))
    assert same(before, dict(model.named_parameters()))
