"""The learning rate over a run."""

from __future__ import annotations

from math import cos, pi

from acdc_cli.recipe.blocks.optim import CosineSchedule, LinearSchedule, StepSchedule
from acdc_cli.recipe.schema import Recipe


def learning_rate(recipe: Recipe, progress: float) -> float:
    """The learning rate after `progress` epochs of the run, on the clock of the recipe's method."""
    return recipe.optim.lr * share_of_peak(recipe.optim.schedule, *recipe.sparsity.clock(progress, recipe.epochs))


def share_of_peak(schedule: LinearSchedule | CosineSchedule | StepSchedule, progress: float, epochs: int) -> float:
    """The learning rate as a fraction of its peak, after `progress` epochs of the run.

    The peak is reached when `progress` is `warmup_epochs`, the schedule's end when it is `epochs`.
    """
    if progress < schedule.warmup_epochs:
        start = schedule.warmup_start
        return start + (1 - start) * progress / schedule.warmup_epochs
    if isinstance(schedule, StepSchedule):
        return schedule.gamma ** sum(progress >= milestone for milestone in schedule.milestones)
    descent = (progress - schedule.warmup_epochs) / (epochs - schedule.warmup_epochs)
    remaining = 1 - descent if isinstance(schedule, LinearSchedule) else (1 + cos(pi * descent)) / 2
    return schedule.end + (1 - schedule.end) * remaining
