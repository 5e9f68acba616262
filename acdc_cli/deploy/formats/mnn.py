"""MNN, an engine whose CPU kernels gain speed from zeros anywhere in the weights; converted from ONNX."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from acdc_cli.console import unprinted
from acdc_cli.deploy.contract import Facts, Logits, engine_logits
from acdc_cli.deploy.formats import onnx
from acdc_cli.errors import ModelError

with unprinted():
    # the converter itself: MNN's command would install a usage logger
    import _tools
    import MNN  # noqa: F401 — the check runs on it

SUFFIX = ".mnn"
SOURCE = "onnx"
Options = onnx.Options


def write(model: nn.Module, facts: Facts, options: onnx.Options, out: Path) -> None:
    source = out.with_name("source-of-mnn.onnx")
    onnx.write(model, facts, options, source)
    convert(source, facts, out)


def convert(source: Path, facts: Facts, out: Path) -> None:
    """Raises ModelError for a model that MNN cannot hold."""
    places = ["--modelFile", str(source), "--MNNModel", str(out), "--bizCode", "acdc"]
    with unprinted():
        _tools.mnnconvert(["mnnconvert", "-f", "ONNX", *places, "--detectSparseSpeedUp"])
    # it says so on the terminal alone
    if not out.exists():
        raise ModelError(f"MNN cannot convert {facts.recipe.model.name}; its ONNX export may run elsewhere")


def read(path: Path, facts: Facts) -> Logits:
    return engine_logits("mnn", path)
