"""Options and tracing for the formats that record a model's operations."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from acdc_cli.data.inputs.images import normalised
from acdc_cli.deploy.contract import ModelDescription
from acdc_cli.errors import ModelError
from acdc_cli.recipe.blocks.base import Block
from acdc_cli.recipe.schema import Recipe

_LARGEST_BATCH = 1024


class Traced(Block):
    """The options of every format that records a model's operations."""

    batch: Annotated[int, Field(ge=1)] | Literal["dynamic"] = "dynamic"
    """Images in a batch; `dynamic`: any number up to 1,024."""
    input_size: Annotated[int, Field(ge=1)] | None = None
    """Side of the images in pixels; null: the recipe's `data.val_crop`."""
    with_preprocessing: bool = False
    """Whether the model takes RGB images as uint8 (batch, height, width, 3) and normalises them itself."""
    shrink: bool = False
    """Whether channels that no image can change are removed first, without a change of the function."""


class Preprocessed(nn.Module):
    """A model that takes uint8 images (n, height, width, 3)."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self._model = model
        self._recipe = recipe

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self._model(normalised(images.permute(0, 3, 1, 2), self._recipe.images))
        return logits


def trace(model: nn.Module, facts: ModelDescription, options: Traced) -> ExportedProgram:
    """Raises ModelError for a model whose operations depend on more than the sizes of its input."""
    dynamic = options.batch == "dynamic"
    # of two: torch takes a single image's dimension for a constant
    example = facts.example(2 if options.batch == "dynamic" else options.batch)
    shapes = ({0: Dim("batch", min=1, max=_LARGEST_BATCH)},) if dynamic else None
    try:
        return torch.export.export(model, (example,), dynamic_shapes=shapes)
    # of several kinds, most of which are no public names
    except Exception as error:
        cause = str(error).strip().partition("\n")[0]
        hint = "; a fixed --batch may do" if dynamic else ""
        raise ModelError(f"torch cannot trace {facts.recipe.model.name}: {cause}{hint}") from error
