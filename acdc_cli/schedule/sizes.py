"""The size of the training samples over a run."""

from __future__ import annotations

from acdc_cli.recipe.schema import Recipe


def sizes(recipe: Recipe) -> list[int]:
    """Size of the training samples in each epoch, on the clock of the recipe's method."""
    clocks = (recipe.sparsity.clock(epoch, recipe.epochs) for epoch in range(recipe.epochs))
    return [recipe.data.size_at(int(elapsed), epochs) for elapsed, epochs in clocks]
