"""`acdc export`: a run's model, or any checkpoint, in a format that others read, checked against the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from acdc_cli import console
from acdc_cli.data.data_set import DataSet, kind_of
from acdc_cli.deploy import contract, parity
from acdc_cli.deploy.contract import ModelDescription
from acdc_cli.deploy.shrinking import Shrunk, shrunk
from acdc_cli.deploy.tracing import Preprocessed, Traced
from acdc_cli.errors import RunError
from acdc_cli.files import assembling
from acdc_cli.jobs import setup
from acdc_cli.jobs.checkpoints import Which, header_of, judged, located, recipe_of, weights_of
from acdc_cli.jobs.data_search import open_found
from acdc_cli.recipe.kinds import measures_of
from acdc_cli.recipe.load import block_of, sorted_overrides
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.outcome import outcome
from acdc_cli.runs.run_dir import open_run
from acdc_cli.tasks.base import registry as tasks

_IMAGES = 32
"""Validation images that the check takes, evenly spread."""
_BATCHES = (1, 16)


@dataclass(frozen=True)
class Asked:
    """What the command line says; None keeps what the run or the format says."""

    which: Which | None = None
    model: str | None = None
    data: str | None = None
    out: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Exported:
    path: Path
    bytes: int
    """Size of the file, or of all files of the folder."""
    parity: parity.Parity
    shrunk: Shrunk | None
    """None where that was not asked for."""

    def as_dict(self) -> dict[str, Any]:
        smaller = {} if self.shrunk is None else {"shrunk": self.shrunk.as_dict()}
        return {"path": str(self.path), "bytes": self.bytes, "check": self.parity.as_dict(), **smaller}


def export(
    source: Path,
    format: str,
    asked: Asked | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, object] = MappingProxyType({}),
) -> Exported:
    """Writes one file, or one folder; what differs from the original is not kept.

    overrides: `key=value` of the format's options and of the recipe's keys.  flags: further options of the format.
    Raises ModelError where the model cannot be exported or differs then, and RunError where there is no such format,
    a package is missing, or something lies at the place already.
    """
    asked = asked or Asked()
    kind, schema = contract.find(format)
    own, others = sorted_overrides(schema, overrides)
    if unknown := [flag for flag in flags if flag not in schema.model_fields]:
        raise RunError(f"format {format} takes no --{unknown[0].replace('_', '-')}")
    options = block_of(schema, [*own, *(f"{key}={value}" for key, value in flags.items())], f"export {format}")
    weights = weights_of(source, asked.which) if source.exists() else source
    out = asked.out or (source / "export" if source.is_dir() else source.parent) / f"{weights.stem}{kind.SUFFIX}"
    if out.exists() and not asked.overwrite:
        raise RunError(f"{out} exists; replace it with --overwrite, or choose another place with --out")
    traced = options if isinstance(options, Traced) else Traced()
    opened = open_model(source, asked, others, traced)
    batches = _BATCHES if traced.batch == "dynamic" else (traced.batch,)
    inputs = opened.inputs(max(batches))
    model = opened.model if opened.shrunk is None else _checked(opened, opened.shrunk, inputs, max(batches))
    with assembling(out) as partial:
        kind.write(model, opened.facts, options, partial)
        _refuse_if_of_others(out, partial)
        exported = kind.read(partial, opened.facts)
        noun = opened.facts.recipe.data.noun
        agreed = parity.check(opened.model, exported, inputs, batches, str(out), answers=opened.answers, noun=noun)
    if publish := getattr(kind, "publish", None):
        publish(out, opened.facts, options)
    files = [file for file in (out, *out.rglob("*")) if file.is_file()]
    return Exported(out, sum(file.stat().st_size for file in files), agreed, opened.shrunk)


@dataclass(frozen=True)
class Opened:
    model: nn.Module
    """In eval mode, on the CPU; it takes `facts.inputs`."""
    facts: ModelDescription
    data: DataSet
    shrunk: Shrunk | None = None
    """The same function without dead channels, where that is asked for; it takes `facts.inputs`, too."""

    def answers(self, logits: Tensor) -> Tensor:
        return tasks.build(self.facts.recipe.task).answers(logits)

    def inputs(self, at_least: int) -> Tensor:
        """Validation images, evenly spread over the set, and repeated where it has fewer than `at_least`."""
        loader = self.data.val_loader(torch.device("cpu"), count=max(_IMAGES, at_least))
        try:
            loader.warm_up()
            with loader.epoch(0) as batches:
                inputs = torch.cat([batch.inputs.clone(memory_format=torch.contiguous_format) for batch in batches])
        finally:
            loader.close()
        return self.facts.inputs(torch.cat(-(-at_least // len(inputs)) * [inputs]))


def open_model(source: Path, asked: Asked, overrides: Sequence[str], traced: Traced) -> Opened:
    """Raises CheckpointError, RunError, ModelError and DataError for what cannot be opened."""
    source = located(source)
    recipe = recipe_of(source, asked.which, asked.model, asked.data, overrides)
    weights = weights_of(source, asked.which)
    recipe = judged(recipe, weights, asked.data)
    header = header_of(weights) or {"recipe": setup.without_start(recipe).as_dict()}
    recipe = _on_cpu(recipe, traced.input_size)
    data = open_found(recipe.data, source)
    ready = setup.build(recipe, data.labelled)
    setup.require_sizes(ready, [recipe.data.val_size])
    is_result = source.is_dir() and weights == weights_of(source)
    facts = ModelDescription(
        name=f"{recipe.name}-{recipe.seed}",
        recipe=recipe,
        classes=data.class_names,
        header=header,
        outcome=outcome(open_run(source), measures_of(recipe.task.name)).values if is_result else {},
        with_preprocessing=traced.with_preprocessing,
        batch=None if traced.batch == "dynamic" else traced.batch,
    )
    model = ready.model.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    smaller = shrunk(model, recipe.require_images("--shrink").val_crop) if traced.shrink else None
    model = kind_of(recipe.data).deployed(model).eval()
    if traced.with_preprocessing:
        recipe.require_images("--with-preprocessing")
        model = Preprocessed(model, recipe).eval()
        smaller = smaller and replace(smaller, model=Preprocessed(smaller.model, recipe).eval())
    return Opened(model, facts, data, smaller)


def _checked(opened: Opened, smaller: Shrunk, inputs: Tensor, batch: int) -> nn.Module:
    """The model without dead channels. Raises ModelError where it differs from the original."""
    name = opened.facts.recipe.model.name
    console.say(smaller.described(name))
    if smaller.removed:
        what = f"{name} without its dead channels"
        parity.check(opened.model, smaller.model, inputs, (batch,), what, parity.SHRUNK_TOLERANCE, opened.answers)
    return smaller.model


def _refuse_if_of_others(out: Path, new: Path) -> None:
    """A folder is replaced as a whole, so that it has to be one of such an export."""
    others = {path.name for path in out.iterdir()} if out.is_dir() else set()
    others -= {path.name for path in new.iterdir()} if new.is_dir() else set()
    if others:
        raise RunError(f"{out} is not replaced, because it also holds {min(others)}; choose another place with --out")


def _on_cpu(recipe: Recipe, side: int | None) -> Recipe:
    """side: of the validation crops in pixels, which then cover the same share of the image as before."""
    block = recipe.data
    if side is not None:
        block = recipe.require_images("--input-size")
        resize = round(block.val_resize * side / block.val_crop)
        block = block.model_copy(update={"val_crop": side, "val_resize": resize})
    return recipe.model_copy(update={"device": "cpu", "data": block})
