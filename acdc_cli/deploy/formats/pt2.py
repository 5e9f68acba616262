"""torch.export's program, which torch loads without this package or the model's code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from acdc_cli.deploy.contract import Logits, ModelDescription, engine_logits
from acdc_cli.deploy.tracing import Traced, trace
from acdc_cli.errors import CheckpointError
from acdc_cli.reading import parse_json

SUFFIX = ".pt2"
Options = Traced
_ABOUT = "acdc.json"


def write(model: nn.Module, facts: ModelDescription, options: Traced, out: Path) -> None:
    program = trace(model, facts, options)
    # a file, because torch warns of a path that does not end in .pt2
    with out.open("wb") as file:
        torch.export.save(program, file, extra_files={_ABOUT: json.dumps(facts.metadata())})


def read(path: Path, facts: ModelDescription) -> Logits:
    return engine_logits("torch", path)


def metadata(path: Path) -> Mapping[str, str]:
    files = {_ABOUT: ""}
    with path.open("rb") as file:
        torch.export.load(file, extra_files=files)
    about: dict[str, str] = parse_json(files[_ABOUT], dict[str, str], CheckpointError)
    return about
