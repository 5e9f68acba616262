"""The kinds of blocks that a recipe can choose from: methods, tasks, optimisers and schedules."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel, create_model

from acdc_cli.quantities import Measures
from acdc_cli.recipe.blocks.data import DataBlock
from acdc_cli.recipe.blocks.images import ImagesBlock
from acdc_cli.recipe.blocks.sentences import SentencesBlock
from acdc_cli.recipe.blocks.sparsity import SparsityBlock
from acdc_cli.recipe.blocks.task import current_task
from acdc_cli.recipe.blocks.text import TextBlock
from acdc_cli.recipe.discovery import METHODS, TASKS
from acdc_cli.recipe.schema import Recipe
from acdc_cli.recipe.shape import Shape
from acdc_cli.recipe.syntax import KeyPath


def methods() -> list[str]:
    """The sparse-training methods in alphabetical order, one per file of `sparsity/methods`; imports none of them."""
    return METHODS.names()


def method_config(method: str) -> type[SparsityBlock]:
    """The `Config` of a method's file."""
    config: type[SparsityBlock] = METHODS.module(method).Config
    return config


def method_class(method: str) -> type[Any]:
    """The `Method` of a method's file: the `Sparsifier` that its `Config` describes."""
    hooks: type[Any] = METHODS.module(method).Method
    return hooks


def task_class(name: str) -> type[Any]:
    """The `Task` of a task's file; also of a name that older recipes have."""
    file, slash, variant = current_task(name).partition("/")
    module = TASKS.module(file)
    task: type[Any] = module.VARIANTS[variant] if slash else module.Task
    return task


def measures_of(task: str) -> Measures:
    """What a task of this name measures."""
    measures: Measures = task_class(task).measures
    return measures


DATA_BLOCKS: dict[str, type[DataBlock]] = {block.inputs: block for block in (ImagesBlock, TextBlock, SentencesBlock)}
"""The block `data` of each kind of inputs."""


def data_class(task: str) -> type[DataBlock]:
    """The block `data` of recipes with a task of this name."""
    return DATA_BLOCKS[task_class(task).inputs]


@cache
def recipe_class(sparsity: type[SparsityBlock], data: type[DataBlock] = ImagesBlock) -> type[Recipe]:
    """A recipe with the blocks of a method and of a kind of inputs; the same class each time, so that recipes
    compare."""
    return create_model("Recipe", __base__=Recipe, sparsity=(sparsity, ...), data=(data, ...))


@cache
def shape_of(block: type[BaseModel]) -> Shape:
    return Shape.of(block)


def keys_of_kind(path: KeyPath, block: dict[str, Any]) -> frozenset[str]:
    """The keys of the kind that this block names; empty if it has no kinds or names an unknown one."""
    if path == ("sparsity",):
        method = block.get("method")
        return frozenset(method_config(method).model_fields) if method in methods() else frozenset()
    optim = shape_of(Recipe).child("optim")
    assert optim is not None
    if path == ("optim",):
        return _keys(optim, block)
    if path == ("optim", "schedule"):
        schedule = next(iter(optim.kinds.values())).child("schedule")
        assert schedule is not None
        return _keys(schedule, block)
    return frozenset()


def _keys(shape: Shape, block: dict[str, Any]) -> frozenset[str]:
    kind = block.get(str(shape.chooser))
    return frozenset(shape.kinds[kind].keys) if isinstance(kind, str) and kind in shape.kinds else frozenset()
