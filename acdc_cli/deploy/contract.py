"""Export formats: every file of `formats/` is one, and no other file names it.

Such a file has a docstring, whose first line describes the format; `SUFFIX`, `write` and `read` of `Format`; and, if
it has options, a `Block` named `Options`. It imports its packages at its top; `find` reports one that is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from acdc_cli import reading
from acdc_cli.data.data_set import kind_of
from acdc_cli.deploy.engines import ENGINES
from acdc_cli.errors import CheckpointError, RunError
from acdc_cli.models.build import build
from acdc_cli.recipe.blocks.base import Block
from acdc_cli.recipe.discovery import FORMATS
from acdc_cli.recipe.load import from_dict
from acdc_cli.recipe.schema import Recipe

Logits = Callable[[Tensor], Tensor]
"""A batch, as `ModelDescription.inputs` gives it, to logits (batch, classes) on the CPU."""

_RAW = "uint8 RGB"
"""The input of a model with preprocessing, in its metadata."""
_EXTRAS = {"onnxscript": "deploy", "onnxruntime": "deploy", "MNN": "mnn", "_tools": "mnn"}
"""Extras of this package, by the modules that they install."""


@dataclass(frozen=True)
class ModelDescription:
    """The facts about a model besides its weights."""

    name: str
    recipe: Recipe
    """The recipe of the exported model: `model.weights` is the file that it was read from."""
    classes: tuple[str, ...]
    """Class names in the order of the logits."""
    header: Mapping[str, Any]
    """The recipe and the metrics in the header of the weights' file."""
    outcome: Mapping[str, float | None]
    """`runs.outcome` of the run that trained the model; empty for other models."""
    with_preprocessing: bool = False
    """Whether the model normalises its input."""
    batch: int | None = None
    """The one batch size that the exported model takes; None: any."""

    def inputs(self, images: Tensor) -> Tensor:
        """The exported model's input for the inputs of a batch: such as normalised images, or with preprocessing
        images as an image reader gives them, uint8 (n, side, side, 3)."""
        if self.with_preprocessing:
            return images.permute(0, 2, 3, 1).contiguous()
        return kind_of(self.recipe.data).engine_inputs(images, self.recipe.data)

    def example(self, batch: int) -> Tensor:
        """Inputs of a batch of blank samples."""
        blank = kind_of(self.recipe.data).blank(self.recipe.data.val_size, torch.device("cpu"))
        return self.inputs(torch.cat(batch * [blank]))

    def metadata(self) -> dict[str, str]:
        """What an exported file says of itself; `recorded` reads it. `class_names`, `mean` and `std` are JSON."""
        block = self.recipe.data
        shown = {**block.shown(), "batch": self.batch}
        return {
            "acdc": json.dumps({**self.header, "shown": shown}),
            "class_names": json.dumps(self.classes),
            "input": _RAW if self.with_preprocessing else kind_of(block).engine_inputs_are,
            **{key: json.dumps(getattr(block, key)) for key in ("mean", "std") if hasattr(block, key)},
        }

    def rebuilt(self, weights: Path) -> nn.Module:
        """The recipe's model, in eval mode, with the weights of a file that `models.weights` reads."""
        model = build(self.recipe.model.starting_from(str(weights)), len(self.classes))
        return kind_of(self.recipe.data).deployed(model).eval()


class Format(Protocol):
    SUFFIX: str
    """Ending of the name of a file or folder of this format."""

    def write(self, model: nn.Module, facts: ModelDescription, options: Block, out: Path) -> None:
        """model: in eval mode, on the CPU; it takes `facts.inputs`.  out: does not exist; it lies in an empty temporary
        folder, where other files may be left.

        Raises ModelError for a model that the format cannot hold.
        """

    def read(self, path: Path, facts: ModelDescription) -> Logits:
        """The written model, run as its users run it.

        A format may also have `publish(path, facts, options)`, which is called after the check has passed.
        """


class _Shown(reading.Form):
    batch: PositiveInt | None


class _Header(reading.Form):
    recipe: dict[str, Any]
    shown: _Shown


def recorded(path: Path) -> tuple[Program, ModelDescription] | None:
    """The format of an exported file that an engine runs, and what the file says of itself; None for any other file.

    Raises RunError where its packages are missing, and CheckpointError for a file that says nothing of itself.
    """
    if path.suffix.removeprefix(".") not in FORMATS.names():
        return None
    kind, _ = find(path.suffix.removeprefix("."))
    if not hasattr(kind, "metadata"):
        return None
    program = cast(Program, kind)
    try:
        about = program.metadata(path)
        header = reading.parse_json(about["acdc"], _Header, CheckpointError)
        recipe = from_dict(header["recipe"], str(path))
        shown = header.pop("shown")
        classes = tuple(reading.parse_json(about["class_names"], list[str], CheckpointError))
    # whatever the format's own reader raises over a damaged file
    except Exception as error:
        raise CheckpointError(f"{path} is damaged, or was not written by acdc export: {_cause(error)}") from error
    batch = shown.pop("batch")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=shown)})
    return program, ModelDescription(path.stem, recipe, classes, header, {}, about["input"] == _RAW, batch)


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


class Program(Format, Protocol):
    """A format whose files are run, and say what they are."""

    def metadata(self, path: Path) -> Mapping[str, str]:
        """`ModelDescription.metadata` of the model that was written. May raise anything for another file."""


class Converted(Format, Protocol):
    """A format that is made from the file of another."""

    SOURCE: str
    """The other's name."""

    def convert(self, source: Path, facts: ModelDescription, out: Path) -> None:
        """As `write`, from a file of the other format, of the same model and options."""


def engine_logits(engine: str, path: Path) -> Logits:
    """A file as one of `engines` runs it."""
    run = ENGINES[engine].open(path, 0)
    return lambda inputs: torch.from_numpy(run(inputs.numpy()))


def find(name: str) -> tuple[Format, type[Block]]:
    """A format and its options. Raises RunError where there is none of that name, or its packages are missing."""
    try:
        module = FORMATS.module(name)
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if missing == "acdc_cli":
            raise
        extra = _EXTRAS.get(missing)
        package = f'"acdc-cli[{extra}]"' if extra else missing
        raise RunError(f"format {name} needs the package {missing}, which is missing: pip install {package}") from error
    options: type[Block] = getattr(module, "Options", Block)
    return cast(Format, module), options
