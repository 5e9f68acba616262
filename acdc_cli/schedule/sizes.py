"""The size of the training samples over a run."""

from __future__ import annotations

from acdc_cli.recipe.blocks.base import epochs_of, part_of
from acdc_cli.recipe.blocks.course import ResolutionRamp, SizeCourse
from acdc_cli.recipe.schema import Recipe


def sizes(recipe: Recipe) -> list[int]:
    """Size of the training samples in each epoch, on the clock of the recipe's method."""
    clocks = (recipe.sparsity.clock(epoch, recipe.epochs) for epoch in range(recipe.epochs))
    return [size_at(recipe.data.train_size, int(elapsed), epochs) for elapsed, epochs in clocks]


def size_at(course: SizeCourse, epoch: int, epochs: int) -> int:
    """Size in an epoch of a run of `epochs` epochs."""
    if isinstance(course, int):
        return course
    if isinstance(course, ResolutionRamp):
        return _on_ramp(course, epoch, epochs)
    return [step.size for step in course if part_of(step.since, epochs) <= epoch][-1]


def _on_ramp(ramp: ResolutionRamp, epoch: int, epochs: int) -> int:
    """FFCV's ImageNet script: the line from one size to the other, at the nearest multiple of `step`.

    Halves go to the even multiple, as NumPy rounds them: 176 is 5.5 times 32 and becomes 6 times 32.
    """
    begin, end = epochs_of(ramp.begin, epochs), epochs_of(ramp.end, epochs)
    if epoch <= begin:
        return ramp.start_size
    if epoch >= end:
        return ramp.end_size
    # in the order of np.interp, so that the same epochs give halves
    slope = (ramp.end_size - ramp.start_size) / (end - begin)
    return round((slope * (epoch - begin) + ramp.start_size) / ramp.step) * ramp.step
