"""The block `task` of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PositiveFloat, model_validator

from acdc_cli.recipe.blocks.base import Block, Share
from acdc_cli.recipe.discovery import TASKS
from acdc_cli.recipe.explain import unknown_name

OLDER_TASKS = {"classification": "multiclass"}
"""Names of tasks in older recipes, with those of today."""


def current_task(name: str) -> str:
    return OLDER_TASKS.get(name, name)


DEFAULT_TASK = "multiclass"


def task_names() -> list[str]:
    """All tasks: the files, and FILE/VARIANT for each variant of those that have some. Imports all files."""
    variants = {file: getattr(TASKS.module(file), "VARIANTS", {}) for file in TASKS.names()}
    return [name for file, own in variants.items() for name in ([f"{file}/{each}" for each in own] or [file])]


def is_task(name: str) -> bool:
    """Whether a task of this name exists: a file of `acdc_cli/tasks`, or one of a file's variants, FILE/VARIANT."""
    file, slash, variant = current_task(name).partition("/")
    if file not in TASKS.names():
        return False
    variants = getattr(TASKS.module(file), "VARIANTS", {})
    return variant in variants if variants else not slash


def _known_task(name: str) -> str:
    name = current_task(name)
    if is_task(name):
        return name
    known = task_names()
    own = [each for each in known if each.startswith(f"{name.partition('/')[0]}/")]
    raise ValueError(unknown_name(name, own or known))


LAST_DENSE = "last_dense"
"""The value of `task.teacher` that names no file."""


class DistillationBlock(Block):
    temperature: PositiveFloat = 4.0
    """T: both models' logits are divided by it."""
    weight: Share = 0.9
    """w: the teacher's share of the training loss, (1 - w) L + w [(1 - h) T² KL(teacher ‖ model) + h H], where L is the
    loss on the labels and H the cross entropy with the teacher's answers as labels (arXiv 1503.02531)."""
    hard: Share = 0.0
    """h: how much of the teacher's share comes from its answers instead of its probabilities."""
    model: str | None = None
    """The architecture of a teacher in a file that was not written by acdc."""


class TaskBlock(Block):
    name: Annotated[str, AfterValidator(_known_task), Field(json_schema_extra={"enum": TASKS.names()})] = DEFAULT_TASK
    """`multiclass`: one class per image, softmax cross entropy. `multilabel`: several labels per image, each there or
    not, with binary cross entropy. `causal_lm`: each token of a text from those before it. `sentence_class`: one class
    per sentence or pair; `glue/rte` and others: tasks of GLUE. Older recipes have `classification` for multiclass."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread evenly during training: over all classes, or for `multilabel` over yes and no of each
    label. Validation losses are not smoothed."""
    loss: Literal["softmax", "binary", "squared"] | None = None
    """`softmax`: cross entropy of the classes. `binary`: binary cross entropy of each class or label on its own.
    `squared`: that of scores. Default: the first that the task has, which is `binary` for multilabel. Validation
    reports the default's."""
    target_threshold: Annotated[float, Field(ge=0, lt=1)] | None = None
    """With `loss: binary`, each target above this becomes 1 and every other 0, for labels that are mixed. Default: the
    targets as they are mixed and smoothed."""
    teacher: str | None = None
    """Distillation: train on the predictions of another model, too. A run directory, whose dense model it takes if
    there is one, or a checkpoint, as in `model.weights`. `last_dense`: the model at the end of this run's last dense
    phase teaches the phases after it. A teacher sees the same images as the model, with its own mean and std."""
    distillation: DistillationBlock = DistillationBlock()

    @model_validator(mode="after")
    def _has_a_teacher(self) -> Self:
        if self.teacher is None and self.distillation != DistillationBlock():
            raise ValueError("distillation needs a teacher: set task.teacher, or remove the block")
        return self

    @model_validator(mode="after")
    def _has_targets(self) -> Self:
        if self.target_threshold is not None and self.loss != "binary":
            raise ValueError("target_threshold: needs loss: binary; set it, or remove target_threshold")
        return self
