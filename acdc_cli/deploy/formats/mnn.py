"""MNN, an engine whose CPU kernels gain speed from zeros anywhere in the weights; converted from ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from acdc_cli.console import unprinted
from acdc_cli.deploy.contract import Facts, Logits
from acdc_cli.deploy.formats import onnx
from acdc_cli.errors import ModelError

with unprinted():
    # the converter itself: MNN's command would install a usage logger
    import _tools
    import MNN

SUFFIX = ".mnn"
Options = onnx.Options


def write(model: nn.Module, facts: Facts, options: onnx.Options, out: Path) -> None:
    source = out.with_name("source-of-mnn.onnx")
    onnx.write(model, facts, options, source)
    places = ["--modelFile", str(source), "--MNNModel", str(out), "--bizCode", "acdc"]
    with unprinted():
        _tools.mnnconvert(["mnnconvert", "-f", "ONNX", *places, "--detectSparseSpeedUp"])
    # it says so on the terminal alone
    if not out.exists():
        raise ModelError(f"MNN cannot convert {facts.recipe.model.name}; its ONNX export may run elsewhere")


def read(path: Path, facts: Facts) -> Logits:
    with unprinted():
        net = MNN.nn.load_module_from_file(str(path), ["images"], ["logits"])

    def logits(inputs: Tensor) -> Tensor:
        kind = MNN.expr.uint8 if inputs.dtype == torch.uint8 else MNN.expr.float
        with unprinted():
            # NCHW for images of either layout: MNN would rearrange any other
            given = MNN.expr.const(inputs.numpy(), list(inputs.shape), MNN.expr.NCHW, kind)
            (found,) = net.forward([given])
            return torch.from_numpy(np.array(MNN.expr.convert(found, MNN.expr.NCHW).read()))

    return logits
