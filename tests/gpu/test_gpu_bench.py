"""`acdc bench --device cuda`: every way to run a model gives its logits, and is timed."""

from __future__ import annotations

import torch
from gpu_device import DEVICE, marks
from torch import Tensor, nn

from acdc_cli.deploy import on_gpu, parity
from acdc_cli.sparsity.patterns import n_of_m

pytestmark = marks


def two_of_four() -> nn.Module:
    """Few layers, because each is compiled for each type and batch."""
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 128, 1, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 64),
    )  # fmt: skip
    with torch.no_grad():
        for layer in (model[3], model[7]):
            layer.weight.mul_(n_of_m(layer.weight.abs(), 2, 4))
    return model.eval().requires_grad_(False)


def test_every_engine_agrees_and_takes_its_turns() -> None:
    torch.manual_seed(0)
    model = two_of_four()
    images = torch.randn(8, 3, 32, 32)
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
