"""What a run costs, as its schedule has it and as its weights really were: the two ledgers of `summary.json`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from acdc_cli import console
from acdc_cli.cost.conventions import CONVENTION, forward_flops
from acdc_cli.cost.count import operations
from acdc_cli.cost.training_cost import Flops, Kept, Measured, forward_kept, nominal
from acdc_cli.errors import ModelError
from acdc_cli.jobs import setup
from acdc_cli.recipe.schema import Recipe
from acdc_cli.sparsity.prunable import zero_counts
from acdc_cli.training.trainer import Parts


def ledger(recipe: Recipe, classes: int, sides: Iterable[int]) -> Measured | None:
    """Of the recipe's model for images of these sides; None, and said, where it cannot run without its weights."""
    try:
        # a second model, because some keep what they build at their first call, which would lie on the meta device
        model = setup.without_weights(recipe, classes)
        return Measured({side: operations(model, side) for side in sides}, CONVENTION)
    except ModelError as e:
        console.warn(f"what the run costs will not be counted: {e}")
        return None


def both(
    ledger: Measured, parts: Parts, resolutions: Sequence[int], batch_size: int, inference_side: int
) -> dict[str, Any]:
    """FLOPs of the whole training and of one validation image: dense, by the method's schedule, and as measured.

    The nominal training is the total of `acdc plan`, the measured one the last record's `train_flops`: both with what
    the method asked for besides its steps.

    resolutions: of the epochs' images.  Both sides in pixels.
    """
    sparsifier, steps = parts.sparsifier, parts.train.steps
    images = steps * batch_size

    def forward(side: int, kept: Kept | None) -> Flops:
        return forward_flops(ledger.operations[side], kept, ledger.convention)

    planned = nominal(sparsifier, ledger.operations, resolutions, steps, batch_size, ledger.convention)
    zeros = zero_counts(parts.layers)
    nonzero = {layer.parameter_name: zeros[layer.name][1] - zeros[layer.name][0] for layer in parts.layers}
    dense_images = sum(3 * forward(side, None) for side in resolutions)
    return {
        "convention": ledger.convention,
        "inference_resolution": inference_side,
        "dense": _entry(forward(inference_side, None), images * dense_images),
        "nominal": _entry(
            forward(inference_side, forward_kept(sparsifier, len(resolutions) - 1)),
            images * sum(epoch.train for epoch in planned),
        ),
        "measured": _entry(forward(inference_side, nonzero), ledger.total),
    }


def _entry(inference: Flops, training: Flops) -> dict[str, int]:
    return {"inference_flops": round(inference), "train_flops": round(training)}
