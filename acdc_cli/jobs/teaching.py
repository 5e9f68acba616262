"""The teacher that a recipe names: its model and its price."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from acdc_cli import console, files
from acdc_cli.cost.conventions import Convention, forward_flops
from acdc_cli.cost.count import Operation, operations
from acdc_cli.cost.training_cost import TeacherCost
from acdc_cli.data.data_set import kind_of
from acdc_cli.errors import CheckpointError, ModelError, RunError
from acdc_cli.jobs import setup
from acdc_cli.jobs.checkpoints import dense_first, located, names_its_model, recipe_of
from acdc_cli.models import build as models
from acdc_cli.models import hub_weights
from acdc_cli.recipe import code
from acdc_cli.recipe.blocks.data import DataBlock
from acdc_cli.recipe.blocks.images import ImagesBlock
from acdc_cli.recipe.blocks.model import ModelBlock
from acdc_cli.recipe.blocks.task import LAST_DENSE
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.run_dir import open_run
from acdc_cli.sparsity.prunable import layers, zero_counts
from acdc_cli.training.compiling import Compiled
from acdc_cli.training.epoch_record import nonzero_weights
from acdc_cli.training.evaluate import Forward, forward_of
from acdc_cli.training.teacher import LastDense, Teacher


@dataclass(frozen=True)
class _Source:
    """What a teacher is made of."""

    model: ModelBlock
    data: DataBlock
    """What it was trained on, or how images are prepared for it."""
    file: Path
    trained_on: str | None = None
    """Name of its data set, where it is recorded."""
    classes: tuple[str, ...] | None = None
    """Their names, where they are recorded."""


@dataclass(frozen=True)
class Price:
    cost: TeacherCost
    size: int
    """Bytes of the teacher's weights and running statistics."""
    assumption: str | None = None


def teacher(recipe: Recipe, ready: setup.ReadyModel, classes: Sequence[str], sides: Iterable[int]) -> Teacher | None:
    """The recipe's teacher on the model's device; None if it names none.

    classes: their names.  sides: of the training images.
    Raises ModelError for a teacher that cannot be read, or is for other classes or images.
    """
    name, block = recipe.task.teacher, recipe.task.distillation
    if name is None:
        return None
    recipe.require_images("task.teacher")
    if name == LAST_DENSE:
        model = setup.without_start(recipe).model
        built = _on_device(model, recipe.data, recipe, ready, len(classes))
        return LastDense(*built, ready.task, block)
    source = _source(name, block.model)
    _require_classes(name, source, classes)
    if source.trained_on not in (None, recipe.data.name):
        console.warn(f"task.teacher: {name} was trained on {source.trained_on}, this run trains on {recipe.data.name}")
    built = _on_device(source.model, source.data, recipe, ready, len(classes))
    with _as_the_teachers():
        setup.require_sizes(replace(ready, model=built[0]), sides)
    return Teacher(*built, ready.task, block, files.sha256(source.file))


def price(
    recipe: Recipe,
    model: nn.Module,
    classes: int,
    counted: Mapping[int, Sequence[Operation]],
    convention: Convention,
    planned: bool = False,
) -> Price | None:
    """The price of the recipe's teacher; None if it names none.

    model: the recipe's, without memory.  counted: its operations, by the side of the images.
    planned: a teacher that is not on this machine is assumed to be the recipe's own model, dense.
    """
    name = recipe.task.teacher
    if name is None:
        return None
    is_own = name == LAST_DENSE
    if is_own or (planned and not Path(name).expanduser().exists()):
        dense = {side: forward_flops(each, None, convention) for side, each in counted.items()}
        assumption = None if is_own else f"{name} was not found: a dense {recipe.model.name} is assumed to teach"
        return Price(TeacherCost(dense, after_dense=is_own), _size(model), assumption)
    taught_by = _built(_source(name, recipe.task.distillation.model).model, classes)
    weights = layers(taught_by, ())
    kept = nonzero_weights(weights, zero_counts(weights))
    flops = {side: forward_flops(operations(taught_by, side), kept, convention) for side in counted}
    return Price(TeacherCost(flops, after_dense=False), _size(taught_by))


@contextmanager
def _as_the_teachers() -> Iterator[None]:
    """Errors name the recipe's key: without it they would seem to be those of the trained model."""
    try:
        yield
    except (CheckpointError, RunError, ModelError) as error:
        raise ModelError(f"task.teacher: {error}") from error


def _source(name: str, architecture: str | None) -> _Source:
    with _as_the_teachers():
        path = located(Path(name).expanduser())
        if not path.exists():
            raise CheckpointError(f"{name} does not exist; give a run directory or a checkpoint file")
        file = dense_first(path)
        if names_its_model(path):
            if architecture is not None:
                raise CheckpointError(f"{name} records its own architecture; remove task.distillation.model")
            return _recorded(path, file)
    architecture = architecture or hub_weights.architecture_of(file)
    if architecture is None:
        raise ModelError(f"task.teacher: {name} does not record its architecture; name it in task.distillation.model")
    # imported here because it imports torchvision and timm
    from acdc_cli.models.preprocessing import preprocessing

    shown = preprocessing(architecture, file)
    options = dict(models.options_for(architecture, file))
    block = ModelBlock.model_validate({**code.named(architecture), "options": options, "weights": str(file)})
    data = ImagesBlock(name="teacher", batch_size=1, mean=shown.mean, std=shown.std)
    return _Source(block, data, file)


def _recorded(path: Path, file: Path) -> _Source:
    recipe = recipe_of(path)
    block = recipe.model.starting_from(str(file))
    names = open_run(path).last_start()["data"].get("class_names") if path.is_dir() else None
    classes = None if names is None else tuple(names)
    return _Source(block, recipe.data, file, recipe.data.name, classes)


def _require_classes(name: str, source: _Source, classes: Sequence[str]) -> None:
    """Their number is checked with the weights."""
    if source.classes is None or len(source.classes) != len(classes):
        return
    for ours, theirs in zip(classes, source.classes, strict=True):
        if ours != theirs:
            raise ModelError(
                f"task.teacher: {name} has class {theirs} where this data has {ours}; name a teacher of the "
                "same classes in the same order"
            )


def _built(block: ModelBlock, classes: int) -> nn.Module:
    """Without drawing from the run's random numbers."""
    with torch.random.fork_rng(devices=[]), _as_the_teachers():
        return models.build(block, classes)


def _on_device(
    block: ModelBlock, data: DataBlock, recipe: Recipe, ready: setup.ReadyModel, classes: int
) -> tuple[nn.Module, Forward]:
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model = _built(block, classes).to(ready.device).to(memory_format=layout)
    forward = forward_of(model, kind_of(data).preparation(data, ready.device, layout))
    # without the CUDA graphs of other modes, which would overwrite the trained model's logits
    return model, Compiled(forward, model, "default") if isinstance(ready.forward, Compiled) else forward


def _size(model: nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))
