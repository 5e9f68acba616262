"""ONNX, for ONNX Runtime and what else reads it; class names, recipe and metrics are in the file's metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
import onnxscript  # noqa: F401 — torch's exporter imports it, but only when it runs
import torch
from pydantic import Field
from torch import Tensor, nn

from acdc_cli.deploy.contract import Facts, Logits, Traced
from acdc_cli.errors import ModelError

SUFFIX = ".onnx"
_LARGEST_BATCH = 1024


class Options(Traced):
    opset: Annotated[int, Field(ge=18)] | None = None
    """Version of the operators; null: what torch's exporter takes."""


def write(model: nn.Module, facts: Facts, options: Options, out: Path) -> None:
    dynamic = options.batch == "dynamic"
    try:
        program = torch.onnx.export(
            model,
            # of two or more: torch takes a single image for a constant
            (facts.example(2 if dynamic else int(options.batch)),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)},) if dynamic else None,
            opset_version=options.opset,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    # of several kinds, which are no public names
    except Exception as error:
        cause = str(error).strip().partition("\n")[0]
        raise ModelError(f"{facts.recipe.model.name} cannot be exported to ONNX: {cause}") from error
    assert program is not None
    program.model.metadata_props.update(
        acdc=json.dumps(facts.header),
        class_names=json.dumps(facts.classes),
        mean=json.dumps(facts.recipe.data.mean),
        std=json.dumps(facts.recipe.data.std),
    )
    program.save(out, external_data=False)


def read(path: Path, facts: Facts) -> Logits:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def logits(inputs: Tensor) -> Tensor:
        (found,) = session.run(["logits"], {"images": np.asarray(inputs)})
        return torch.from_numpy(found)

    return logits
