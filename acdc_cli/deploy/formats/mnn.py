"""MNN, an engine whose CPU kernels gain speed from zeros anywhere in the weights; converted from ONNX."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from acdc_cli.console import unprinted
from acdc_cli.deploy.contract import Logits, ModelDescription, engine_logits
from acdc_cli.deploy.formats import onnx
from acdc_cli.errors import CheckpointError, ModelError
from acdc_cli.reading import parse_json

with unprinted():
    # the converter itself: MNN's command would install a usage logger
    import _tools
    import MNN  # noqa: F401 — the check runs on it

SUFFIX = ".mnn"
SOURCE = "onnx"
_MARK = "acdc export "
Options = onnx.Options


def write(model: nn.Module, facts: ModelDescription, options: onnx.Options, out: Path) -> None:
    source = out.with_name("source-of-mnn.onnx")
    onnx.write(model, facts, options, source)
    convert(source, facts, out)


def convert(source: Path, facts: ModelDescription, out: Path) -> None:
    """Raises ModelError for a model that MNN cannot hold."""
    # the one text of the user's that the file keeps
    about = ["--bizCode", _MARK + json.dumps(facts.metadata())]
    places = ["--modelFile", str(source), "--MNNModel", str(out)]
    with unprinted():
        _tools.mnnconvert(["mnnconvert", "-f", "ONNX", *places, *about, "--detectSparseSpeedUp"])
    # it says so on the terminal alone
    if not out.exists():
        raise ModelError(f"MNN cannot convert {facts.recipe.model.name}; its ONNX export may run elsewhere")


def read(path: Path, facts: ModelDescription) -> Logits:
    return engine_logits("mnn", path)


def metadata(path: Path) -> Mapping[str, str]:
    content = path.read_bytes()
    start = content.index(_MARK.encode())
    # a flatbuffer's text, after its length
    text = content[start : start + int.from_bytes(content[start - 4 : start], "little")].decode()
    about: dict[str, str] = parse_json(text.removeprefix(_MARK), dict[str, str], CheckpointError)
    return about
