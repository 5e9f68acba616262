"""Compiled training in every mode: on CUDA, where reduce-overhead replays graphs, or on ACDC_GPU_TESTS_ON=cpu."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_device
import pytest
import torch
from gpu_device import DEVICE, NAME, Resident
from torch import Tensor
from torch._dynamo.utils import counters

from acdc_cli.jobs import setup, teaching
from acdc_cli.jobs.training_run import assemble
from acdc_cli.models import build as models
from acdc_cli.recipe.blocks.model import ModelBlock
from acdc_cli.recipe.load import load
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.runs.tracker import JsonLines
from acdc_cli.schedule.time import Moment
from acdc_cli.training.compiling import LOG
from acdc_cli.training.trainer import Trainer

CLASSES = 10

pytestmark = [
    *gpu_device.marks,
    # what the compiler has to say about this device and this Python
    pytest.mark.filterwarnings("default"),
]

MODES = ["default", "reduce-overhead"]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    LOG.take()
    yield
    torch.compiler.reset()


def built(folder: Path, compile: str, **changes: Any) -> Trainer:
    values = {
        "device": NAME,
        "precision": "fp32",
        "compile": compile,
        "epochs": 2,
        "optim.schedule.warmup_epochs": 0,
    } | {name.replace("__", "."): value for name, value in changes.items()}
    recipe = load("demo_dense", [f"{key}={value}" for key, value in values.items()])
    ready = setup.build(recipe, CLASSES)
    teacher = teaching.teacher(recipe, ready, [str(number) for number in range(CLASSES)], [28])
    train, val = Resident(64, 16, seed=64), Resident(39, 16, seed=39)
    parts = assemble(recipe, ready, train, val, teacher=teacher)
    run = RunDir(folder)
    run.start("", "", {})
    return Trainer(parts, run, [JsonLines(run.metrics)])


def trained(trainer: Trainer) -> dict[str, Tensor]:
    """What ten steps change of the weights: enough steps for a CUDA graph's warm-up, recording and replays."""
    parts = trainer._parts
    start = {name: weight.detach().clone() for name, weight in parts.model.named_parameters()}
    parts.model.train()
    trainer._backward.begin(0)
    with parts.train.epoch(0) as batches:
        drawn = list(batches)
    for index in range(10):
        trainer._take_step(drawn[index % len(drawn)], Moment(0, index, 2, 4), 0.01)
    return {name: weight.detach() - start[name] for name, weight in parts.model.named_parameters()}


def check_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Up to rounding, which ten steps amplify."""
    for name, change in expected.items():
        assert (actual[name] - change).norm() < 0.05 * change.norm(), name


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_compiled_steps_end_where_eager_ones_do(tmp_path: Path, mode: str, accumulate: int) -> None:
    how = {"optim__accumulate": accumulate}
    check_same(
        trained(built(tmp_path / "compiled", mode, **how)),
        trained(built(tmp_path / "eager", "off", **how)),
    )


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_a_compiled_teacher_leaves_the_logits_alone(tmp_path: Path, mode: str, accumulate: int) -> None:
    torch.manual_seed(3)
    torch.save(models.build(ModelBlock(name="resnet8"), CLASSES).state_dict(), tmp_path / "teacher.pth")
    taught = {
        "optim__accumulate": accumulate,
        "task": f"{{teacher: {tmp_path / 'teacher.pth'}, distillation: {{model: resnet8}}}}",
    }
    check_same(
        trained(built(tmp_path / "compiled", mode, **taught)),
        trained(built(tmp_path / "eager", "off", **taught)),
    )


@pytest.mark.parametrize("mode", MODES)
def test_gradients_besides_the_steps_stay_what_they_were(tmp_path: Path, mode: str) -> None:
    moment = Moment(0, 0, 2, 4)

    def gradients(compile: str) -> list[dict[str, Tensor]]:
        pruned = "{method: gmp, target: 0.5, every_epochs: 1, end: 1}"
        trainer = built(tmp_path / compile, compile, sparsity=pruned)
        return list(trainer._parts.sparsifier.training.gradients(moment, 6, 4))

    for actual, expected in zip(gradients(mode), gradients("off"), strict=True):
        for name, gradient in actual.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_run_builds_one_graph_to_train_and_one_to_validate(
    tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = counters["stats"]["unique_graphs"]
    built(tmp_path / "compiled", mode).fit()
    assert counters["stats"]["unique_graphs"] - before == 2
    assert capsys.readouterr().err.count("compiled 2 graphs in ") == 1
    built(tmp_path / "eager", "off").fit()
    compiled, eager = (RunDir(tmp_path / name).records() for name in ("compiled", "eager"))
    for actual, expected in zip(compiled, eager, strict=True):
        assert actual["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-2)
        assert actual["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-2)


@pytest.mark.parametrize("blur", ["convolution", "shifts"])
def test_a_compiled_blur_is_the_eager_one(tmp_path: Path, blur: str) -> None:
    changes = {"model__blurpool": "true", "model__blur": blur}
    check_same(
        trained(built(tmp_path / "compiled", "default", **changes)),
        trained(built(tmp_path / "eager", "off", **changes)),
    )


@pytest.mark.skipif(NAME != "cuda", reason="TF32 is CUDA's")
def test_fp32_is_exact_where_tf32_rounds(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 28, 28), dtype=torch.uint8, generator=generator)
    errors = {}
    for precision in ("fp32", "tf32"):
        trainer = built(tmp_path / precision, "off", precision=precision)
        parts = trainer._parts
        parts.model.eval()
        with torch.inference_mode():
            actual = parts.forward(images.to(DEVICE)).double()
            mean, std = load("demo_dense").data.mean, load("demo_dense").data.std
            shift, scale = (255 * torch.tensor(each, dtype=torch.float64).view(1, 3, 1, 1) for each in (mean, std))
            exact = parts.model.double().cpu()((images.double() - shift) / scale)
        errors[precision] = float((actual.cpu() - exact).abs().max() / exact.abs().max())
    if torch.cuda.get_device_capability() >= (8, 0):
        assert errors["tf32"] > 1e-4
    assert errors["fp32"] < 2e-5
