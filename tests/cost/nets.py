"""Networks that are only counted: on the meta device, so that no test waits for their weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from acdc_cli.cost.count import Operation
from acdc_cli.models import build
from acdc_cli.models.blurpool import apply_blurpool


def on_meta(name: str, classes: int = 1000, blurpool: bool = False) -> nn.Module:
    with torch.device("meta"):
        model = build.find(name)(num_classes=classes)
        if blurpool:
            apply_blurpool(model)
        return model


def weight_macs(counted: Sequence[Operation]) -> int:
    """Of convolutions and linear layers."""
    return sum(operation.macs for operation in counted if operation.kind in ("conv", "linear"))
