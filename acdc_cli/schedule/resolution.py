"""The side of the training crops over a run."""

from __future__ import annotations

from acdc_cli.recipe.blocks.base import epochs_of, part_of
from acdc_cli.recipe.blocks.data import ResolutionRamp, ResolutionStep
from acdc_cli.recipe.schema import Recipe


def resolutions(recipe: Recipe) -> list[int]:
    """Side of the training crops in each epoch, in pixels, on the clock of the recipe's method."""
    clocks = (recipe.sparsity.clock(epoch, recipe.epochs) for epoch in range(recipe.epochs))
    return [resolution_of(recipe.data.resolution, int(elapsed), epochs) for elapsed, epochs in clocks]


def resolution_of(setting: int | list[ResolutionStep] | ResolutionRamp, epoch: int, epochs: int) -> int:
    """Side of the training crops in this epoch, in pixels."""
    if isinstance(setting, int):
        return setting
    if isinstance(setting, ResolutionRamp):
        return _along(setting, epoch, epochs)
    return [step.size for step in setting if part_of(step.since, epochs) <= epoch][-1]


def _along(ramp: ResolutionRamp, epoch: int, epochs: int) -> int:
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
