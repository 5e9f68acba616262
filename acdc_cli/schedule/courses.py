"""What changes along a run, as pure functions of time: sparsity, learning rate, resolution."""

from __future__ import annotations

from math import cos, pi

from acdc_cli.recipe.schema import (
    CosineSchedule,
    LinearSchedule,
    ResolutionRamp,
    ResolutionStep,
    StepSchedule,
    epochs_of,
    part_of,
)


def cubic(t: float, end: float, target: float) -> float:
    """GMP's sparsity s(t) = s_f (1 - (1 - t/T)^3), from 0 at t = 0 to exactly `target` from T = `end` on.

    arXiv 1710.01878, eq. 1, with initial sparsity 0.
    """
    if t >= end:
        return target
    return target * (1 - (1 - max(t, 0) / end) ** 3)


def learning_rate(schedule: LinearSchedule | CosineSchedule | StepSchedule, progress: float, epochs: int) -> float:
    """The learning rate as a factor of its peak, after `progress` epochs of the run.

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


def resolution(setting: int | list[ResolutionStep] | ResolutionRamp, epoch: int, epochs: int) -> int:
    """Side of the training crops in this epoch, in pixels."""
    if isinstance(setting, int):
        return setting
    if isinstance(setting, ResolutionRamp):
        return _along(setting, epoch, epochs)
    return [step.size for step in setting if part_of(step.since, epochs) <= epoch][-1]


def _along(ramp: ResolutionRamp, epoch: int, epochs: int) -> int:
    """FFCV's ImageNet script: the line from one size to the other, at the nearest multiple of `step`.

    Halves go to the even multiple, as NumPy rounds them: 176 is 5.5 times 32, so that it becomes 6 times 32.
    """
    begin, end = epochs_of(ramp.begin, epochs), epochs_of(ramp.end, epochs)
    if epoch <= begin:
        return ramp.start_size
    if epoch >= end:
        return ramp.end_size
    # in the order of np.interp, so that what is a half there is one here
    slope = (ramp.end_size - ramp.start_size) / (end - begin)
    return round((slope * (epoch - begin) + ramp.start_size) / ramp.step) * ramp.step
