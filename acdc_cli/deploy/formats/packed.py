"""The exact weights in a small file: bit masks, byte-shuffled values, zstd; every acdc command reads it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from acdc_cli.deploy.contract import Logits, ModelDescription
from acdc_cli.models.packed_file import pack
from acdc_cli.models.weights import plain_state_dict
from acdc_cli.recipe.blocks.base import Block
from acdc_cli.training.checkpoint import model_header

SUFFIX = ".packed"


def write(model: nn.Module, facts: ModelDescription, options: Block, out: Path) -> None:
    out.write_bytes(pack(plain_state_dict(model), model_header(facts.header)))


def read(path: Path, facts: ModelDescription) -> Logits:
    return facts.rebuilt(path)
