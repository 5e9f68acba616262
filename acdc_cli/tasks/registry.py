"""The tasks by their names in recipes."""

from __future__ import annotations

from acdc_cli.recipe.schema import TaskBlock
from acdc_cli.tasks.classification import Classification
from acdc_cli.tasks.task import Task

_TASKS = {"classification": Classification}


def build(block: TaskBlock) -> Task:
    return _TASKS[block.name](block.label_smoothing)
