"""`acdc bench --device cuda`: every way to run a model gives its logits, and is timed."""

from __future__ import annotations

import torch
from gpu_device import DEVICE, marks
from torch import Tensor, nn

from acdc_cli.deploy import on_gpu, parity
from acdc_cli.models.build import build
from acdc_cli.recipe.schema import ModelBlock
from acdc_cli.sparsity.patterns import n_of_m

pytestmark = marks


def two_of_four(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.shape[1] % 4 == 0:
                layer.weight.mul_(n_of_m(layer.weight.abs(), 2, 4))
    return model


def test_every_engine_agrees_and_takes_its_turns() -> None:
    torch.manual_seed(0)
    model = two_of_four(build(ModelBlock(name="resnet18"), 64)).eval().requires_grad_(False)
    images = torch.randn(8, 3, 64, 64)
    outcome = on_gpu.run({"sparse": model}, on_gpu.ENGINES, images, (1, 8), range(2), 1e-9, DEVICE)
    assert [each.engine for each in outcome.logits] == list(on_gpu.ENGINES)
    expected: Tensor = model(images)
    for each, logits in outcome.logits.items():
        # convolutions of a GPU round float32 to TF32, with 10 bits after the point; bfloat16 has 7
        tolerance = 0.01 if each.engine in ("torch", "compiled") else 0.1
        assert parity.difference(expected, torch.from_numpy(logits)) < tolerance, each.engine
    assert all(len(record.turns) == 2 for record in outcome.records.values())
    if DEVICE.type == "cuda":
        assert all(record.peak_bytes > 2**20 for record in outcome.records.values())
