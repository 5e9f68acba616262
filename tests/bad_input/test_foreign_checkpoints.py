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

Weights = dict[str, Tensor]
SMALL = [word for key in ("val_resize=28", "val_crop=28", "workers=0") for word in ("--set", f"data.{key}")]


def judged(acdc: Acdc, model: str) -> dict[str, Any]:
    result = acdc("eval", "--checkpoint", "c.pt", "--model", model, "--data", "photos", "--json", *SMALL)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


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
