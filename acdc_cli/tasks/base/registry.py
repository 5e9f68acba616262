"""Builds the task that a recipe names, for the outputs of its data set."""

from __future__ import annotations

from collections.abc import Sequence

from acdc_cli.errors import RecipeError
from acdc_cli.recipe.blocks.task import TaskBlock, task_names
from acdc_cli.recipe.kinds import task_class
from acdc_cli.tasks.base.abstract_task import Task


def build(block: TaskBlock, names: Sequence[str] = (), targets: str | None = None) -> Task:
    """names: of the set's classes or labels.  targets: the kind of the set's targets; None: fitting ones.

    Raises RecipeError if the set has other targets than the task takes.
    """
    kind = task_class(block.name)
    if targets not in (None, kind.targets):
        others = ((name, task_class(name)) for name in task_names())
        fitting = [name for name, other in others if (other.targets, other.inputs) == (targets, kind.inputs)]
        raise RecipeError(
            f"task.name: {block.name} does not fit the data set, whose targets are of the kind {targets!r}; "
            f"take {' or '.join(fitting)}, or another set"
        )
    task: Task = kind(block, names)
    return task
