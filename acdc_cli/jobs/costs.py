"""The cost of a run, planned and measured: the two accounts in `summary.json`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from acdc_cli import console
from acdc_cli.cost.conventions import CONVENTION, forward_flops
from acdc_cli.cost.count import operations
from acdc_cli.cost.training_cost import Flops, Kept, Measured, kept_weights, nominal
from acdc_cli.errors import ModelError
from acdc_cli.jobs import setup, teaching
from acdc_cli.recipe.schema import Recipe
from acdc_cli.sparsity.prunable import zero_counts
from acdc_cli.training.epoch_record import nonzero_weights
from acdc_cli.training.parts import Parts


def measured_cost(recipe: Recipe, classes: int, sides: Collection[int]) -> Measured | None:
    """Counts the FLOPs of the recipe's model, and of its teacher, on images of these sides.

    None, with a warning, for a model that cannot run without its weights.
    """
    try:
        # a separate model, because some models cache tensors at their first call, which would be on the meta device
        model = setup.without_weights(recipe, classes)
        counted = {side: operations(model, side, recipe.data) for side in sides}
        taught = teaching.price(recipe, model, classes, counted, CONVENTION)
        return Measured(counted, CONVENTION, taught.cost if taught else None)
    except ModelError as e:
        console.warn(f"the run's FLOPs will not be counted: {e}")
        return None


def cost_after_pruning(parts: Parts, measured: Measured, side: int) -> dict[str, Any]:
    """FLOPs of one validation image, dense and as pruned, and of the gradients that the method computed."""
    operations, convention = measured.operations[side], measured.convention
    nonzero = nonzero_weights(parts.layers, zero_counts(parts.layers))
    return {
        "convention": convention,
        "inference_resolution": side,
        "dense": _entry(forward_flops(operations, None, convention), 0),
        "measured": _entry(forward_flops(operations, nonzero, convention), measured.total),
    }


def run_cost(parts: Parts, measured: Measured, batch_size: int, inference_side: int) -> dict[str, Any]:
    """FLOPs of the whole training and of one validation image: dense, planned and measured.

    Planned training FLOPs are the total of `acdc plan`; measured ones are the last record's `train_flops`. Both include
    the gradients that the method computes outside its steps.

    inference_side: of the validation crop, in pixels.
    """
    sparsifier, steps = parts.sparsifier, parts.train.steps
    images = steps * batch_size
    resolutions = [parts.resolution(epoch) for epoch in range(parts.epochs)]

    def forward(side: int, kept: Kept | None) -> Flops:
        return forward_flops(measured.operations[side], kept, measured.convention)

    planned = nominal(
        sparsifier, measured.operations, resolutions, steps, batch_size, measured.convention, measured.teacher
    )
    nonzero = nonzero_weights(parts.layers, zero_counts(parts.layers))
    last = sparsifier.cost(len(resolutions) - 1, steps)
    dense_images = sum(3 * forward(side, None) for side in resolutions)
    return {
        "convention": measured.convention,
        "inference_resolution": inference_side,
        "dense": _entry(forward(inference_side, None), images * dense_images),
        "nominal": _entry(
            forward(inference_side, kept_weights(sparsifier.masked, last.forward)),
            images * sum(epoch.train for epoch in planned),
        ),
        "measured": _entry(forward(inference_side, nonzero), measured.total),
    }


def _entry(inference: Flops, training: Flops) -> dict[str, int]:
    return {"inference_flops": round(inference), "train_flops": round(training)}
