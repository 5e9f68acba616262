"""Warnings about a run before it starts; `acdc plan` and `acdc train` print the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from acdc_cli.errors import RecipeError
from acdc_cli.recipe.blocks.base import RunSize, epochs_of
from acdc_cli.recipe.blocks.sparsity import TargetBlock
from acdc_cli.recipe.blocks.task import LAST_DENSE
from acdc_cli.recipe.schema import Recipe
from acdc_cli.schedule.sizes import sizes
from acdc_cli.sparsity.prunable import layer_name
from acdc_cli.sparsity.sparsifier import Sparsifier

_ROUNDING = 1e-3
"""Deviation from the target due to whole weights, or to writing the sparsity of pattern 2:6 as 0.667."""
_MANY_SIZES = 8


def lint(recipe: Recipe, sparsifier: Sparsifier[Any], steps_per_epoch: int) -> list[str]:
    """Warnings, each a line that begins with the recipe's key.

    Raises RecipeError, with one line per problem, if the run would fail during training.
    """
    block = recipe.sparsity
    size = RunSize(recipe.epochs, steps_per_epoch, recipe.data.batch_size)
    block.require(size)
    if recipe.ema and sparsifier.revives_values:
        raise RecipeError(
            f"ema: {block.method} restores the values of weights that it frees, but their average is zero; "
            "remove ema or use another method"
        )
    if recipe.task.teacher == LAST_DENSE and not any(map(sparsifier.phases.after_dense, range(recipe.epochs))):
        raise RecipeError(
            f"task.teacher: {LAST_DENSE} would teach nothing, because {block.method} has no sparse phase after a dense "
            "one; name a run or a checkpoint"
        )
    return [
        *_pattern(recipe, sparsifier),
        *_sparsity_reached(recipe, sparsifier, steps_per_epoch),
        *(f"sparsity.{key}: {text}" for key, text in block.warnings(size)),
        *_warmup(recipe, sparsifier),
        *_learning_rate(recipe),
        *_average(recipe, sparsifier, steps_per_epoch),
        *_sizes(recipe),
    ]


def _pattern(recipe: Recipe, sparsifier: Sparsifier[Any]) -> Iterator[str]:
    if not isinstance(recipe.sparsity, TargetBlock):
        return
    if left_dense := sparsifier.selector.left_dense(sparsifier.masked.shapes):
        yield (
            f"sparsity.pattern: {recipe.sparsity.pattern} does not divide the input channels of "
            f"{', '.join(map(layer_name, left_dense))}; they stay dense"
        )


def _sparsity_reached(recipe: Recipe, sparsifier: Sparsifier[Any], steps_per_epoch: int) -> Iterator[str]:
    """Compares the target with the sparsest epoch, because a run may be meant to end in a dense phase."""
    if not isinstance(recipe.sparsity, TargetBlock):
        return
    densities = [sparsifier.cost(epoch, steps_per_epoch).forward.density for epoch in range(recipe.epochs)]
    reached = max(1 - density for density in densities if density is not None)
    target = recipe.sparsity.target
    if not reached:
        yield f"sparsity.target: at {target:g} no weight is pruned, and the run ends dense; use method dense"
    # the sparsities of `layers` are explicit, and change the overall sparsity
    elif target - reached > _ROUNDING and not recipe.sparsity.layers:
        yield f"sparsity.target: {target:g} is never reached; the pruned layers reach at most {reached:.4g}"


def _warmup(recipe: Recipe, sparsifier: Sparsifier[Any]) -> Iterator[str]:
    first, *later = sparsifier.phases.phases
    warmup = recipe.optim.schedule.warmup_epochs
    if first.kind == "dense" and later and warmup > first.end:
        yield (
            f"optim.schedule.warmup_epochs: the learning rate rises until epoch {warmup:g}, but weights are pruned "
            f"from epoch {first.end} on; shorten the warm-up or lengthen the first dense phase"
        )


def _learning_rate(recipe: Recipe) -> Iterator[str]:
    optim, batch = recipe.optim, recipe.data.batch_size
    if optim.lr_batch is not None and optim.lr_batch != batch:
        scaled = optim.lr * batch / optim.lr_batch
        yield (
            f"optim.lr: {optim.lr:g} was chosen for batch {optim.lr_batch}, but data.batch_size is {batch}; the linear "
            f"scaling rule gives --set optim.lr={scaled:g} --set optim.lr_batch={batch}"
        )


def _average(recipe: Recipe, sparsifier: Sparsifier[Any], steps_per_epoch: int) -> Iterator[str]:
    """Compares with the last phase, because the final average should not mix weights under different masks."""
    if recipe.ema is None:
        return
    begin = max(epochs_of(recipe.ema.begin, recipe.epochs), sparsifier.phases.phases[-1].start)
    steps, span = (recipe.epochs - begin) * steps_per_epoch, 1 / (1 - recipe.ema.decay)
    # 1 - 0.9998 is a little less than 0.0002
    if 3 * span > steps * (1 + _ROUNDING):
        yield (
            f"ema.decay: {recipe.ema.decay:g} spans about {span:,.0f} steps, more than a third of the {steps:,} "
            + ("in the last phase; " if begin else "of the run; ")
            + (f"lower it to {1 - 3 / steps:.4g} or less" if steps > 3 else "train longer")
        )


def _sizes(recipe: Recipe) -> Iterator[str]:
    different = set(sizes(recipe))
    is_off = recipe.compile in (False, "off") or (recipe.compile == "auto" and recipe.device == "cpu")
    if not is_off and len(different) > _MANY_SIZES:
        yield (
            f"data.resolution: torch.compile recompiles the model for each of {len(different)} sizes; use a larger step"
        )
