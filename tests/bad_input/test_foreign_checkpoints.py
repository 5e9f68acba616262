"""Checkpoints of timm, torchvision, DistributedDataParallel and torch.compile are judged by plain names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Acdc
from torch import Tensor

from acdc_cli.models import build
from acdc_cli.recipe import code
from acdc_cli.recipe.blocks.model import ModelBlock

Weights = dict[str, Tensor]
SMALL = [word for key in ("val_resize=28", "val_crop=28", "workers=0") for word in ("--set", f"data.{key}")]


def judged(acdc: Acdc, model: str) -> dict[str, Any]:
    result = acdc("eval", "--checkpoint", "c.pt", "--model", model, "--data", "photos", "--json", *SMALL)
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def prefixed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {f"{prefix}{name}": tensor for name, tensor in weights.items()}


WRAPPINGS: dict[str, Callable[[Weights], dict[str, Any]]] = {
    "DDP": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "DDP of compiled": prefixed("module._orig_mod."),
    "compiled DDP": prefixed("_orig_mod.module."),
    "DDP in state_dict": lambda weights: {"epoch": 3, "state_dict": prefixed("module.")(weights)},
    "compiled in model": lambda weights: {"model": prefixed("_orig_mod.")(weights), "optimizer": {}},
}


@pytest.mark.parametrize(
    ("source", "wrappings"),
    [
        ("timm", ["compiled in model"]),
        ("torchvision", ["DDP of compiled"]),
        # the prefixes are no business of the source
        *(pytest.param(source, [*WRAPPINGS], marks=pytest.mark.slow) for source in ("timm", "torchvision")),
    ],
)
def test_a_wrapped_checkpoint_is_judged_like_the_plain_one(
    acdc: Acdc, home: Path, source: str, wrappings: list[str]
) -> None:
    import timm
    from torchvision import models

    torch.manual_seed(1)
    model = timm.create_model("resnet18", num_classes=2) if source == "timm" else models.resnet18(num_classes=2)
    torch.save(model.state_dict(), "c.pt")
    plain = judged(acdc, f"{source}:resnet18")
    assert plain["params"] == sum(parameter.numel() for parameter in model.parameters())
    for name in wrappings:
        torch.save(WRAPPINGS[name](model.state_dict()), "c.pt")
        assert judged(acdc, f"{source}:resnet18") == plain, name


def test_options_that_the_names_of_tensors_ask_for_are_said(acdc: Acdc, home: Path) -> None:
    torch.save(build.find("resnet8")(num_classes=2, shortcut="conv").state_dict(), "c.pt")
    result = acdc("eval", "--checkpoint", "c.pt", "--model", "resnet8", "--data", "photos", *SMALL)
    assert result.exit_code == 0, result.output
    assert "built with {'shortcut': 'conv'}, which the file's tensor names require" in " ".join(result.stderr.split())


OWN = """from torch import nn


class net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Conv2d(3, 8, 28), nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, num_classes))

    def forward(self, images):
        assert images.sum().item() < 1e9
        return super().forward(images)
"""


def test_a_model_whose_operations_cannot_be_counted_is_judged_and_pruned(acdc: Acdc, home: Path) -> None:
    Path("own.py").write_text(OWN)
    torch.save(build.build(ModelBlock(**code.named("own.py:net")), 2).state_dict(), "c.pt")
    document = judged(acdc, "own.py:net")
    assert (document["params"], document["flops"]) == (3 * 8 * 28 * 28 + 8 + 72 + 18, None)
    asked = ("--method", "oneshot", "--target", "0.5", "--model", "own.py:net", "--data", "photos", "--out", "pruned")
    result = acdc("prune", "c.pt", *asked, *SMALL, "--set", "data.batch_size=8", "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["results"]["targets"]
    assert (row["flops"], row["sparsity"]) == (None, 0.5)
    assert "cost" not in json.loads(Path("pruned/summary.json").read_text())
    assert "FLOPs will not be counted" in " ".join(result.stderr.split())
