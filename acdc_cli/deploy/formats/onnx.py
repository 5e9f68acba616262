"""ONNX, for ONNX Runtime and other engines; class names, recipe and metrics are in the file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import onnx
import onnxruntime  # noqa: F401 — the check runs on it
import onnxscript  # noqa: F401 — torch's exporter imports it, but only when it runs
import torch
from pydantic import Field
from torch import nn

from acdc_cli.deploy.contract import Logits, ModelDescription, engine_logits
from acdc_cli.deploy.tracing import Traced, trace
from acdc_cli.errors import ModelError

SUFFIX = ".onnx"


class Options(Traced):
    opset: Annotated[int, Field(ge=18)] | None = None
    """Version of the operators; null: the one that torch's exporter prefers."""


def write(model: nn.Module, facts: ModelDescription, options: Options, out: Path) -> None:
    traced = trace(model, facts, options)
    try:
        program = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=options.opset,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    # of several kinds, which are no public names
    except Exception as error:
        # the last error only names the steps of the export
        causes: list[BaseException] = [error]
        while (before := causes[-1].__cause__) is not None:
            causes.append(before)
        said = next(filter(None, (str(each).strip() for each in reversed(causes))), type(error).__name__)
        cause = said.partition("\n")[0]
        raise ModelError(f"torch cannot write {facts.recipe.model.name} as ONNX: {cause}") from error
    assert program is not None
    program.model.metadata_props.update(facts.metadata())
    program.save(out, external_data=False)


def read(path: Path, facts: ModelDescription) -> Logits:
    return engine_logits("ort", path)


def metadata(path: Path) -> Mapping[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
