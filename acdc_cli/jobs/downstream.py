"""The recipe of a transfer: an upstream model, a new classifier, and the target's protocol (P2 E)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from acdc_cli.jobs import setup
from acdc_cli.jobs.checkpoints import judged
from acdc_cli.jobs.subjects import Checkpoint
from acdc_cli.models.weights import classifier_of
from acdc_cli.recipe.load import from_dict
from acdc_cli.recipe.schema import Recipe
from acdc_cli.sparsity.prunable import Layer, layers, zero_counts
from acdc_cli.transfer.cells import Mode
from acdc_cli.transfer.target import Target


def recipe_for(subject: Checkpoint, target: Target, mode: Mode, seed: int, overrides: Sequence[str] = ()) -> Recipe:
    """The training of all weights (`full`) or of the classifier alone (`linear`), which starts from the subject."""
    training = target.linear if mode == "linear" else target.finetuning
    blocks = target.blocks(subject.recipe)
    values = subject.recipe.as_dict() | {
        "name": f"transfer-{mode}",
        "epochs": training.epochs,
        "seed": seed,
        "fork": None,
        "ema": None,
        "task": blocks["task"],
        "model": judged(subject.recipe, subject.weights).as_dict()["model"] | {"new_head": mode == "full"},
        "data": blocks["data"] | {"batch_size": training.batch_size},
        "optim": {**training.optim, "schedule": {"name": "linear"}},
        "sparsity": {"method": "dense"},
        "checkpoint": {},
    }
    length = [override for override in overrides if override.startswith("epochs=")]
    values["optim"]["schedule"] = training.schedule(from_dict(values, "transfer", length).epochs)
    return from_dict(values, "transfer", overrides)


def with_new_head(recipe: Recipe, classes: int) -> setup.ReadyModel:
    """The upstream model with a new classifier, whether or not it has one of its own."""
    model = recipe.model.model_copy(update={"new_head": True})
    return _ready(recipe.model_copy(update={"model": model}), classes)


def trained(recipe: Recipe, weights: Path, classes: int) -> setup.ReadyModel:
    """The model after its training on the set."""
    return _ready(judged(recipe, weights), classes)


def _ready(recipe: Recipe, classes: int) -> setup.ReadyModel:
    ready = setup.build(recipe, classes)
    setup.require_sizes(ready, [recipe.data.val_size])
    return replace(ready, layers=but_the_last(ready.model))


def but_the_last(model: nn.Module) -> list[Layer]:
    """The layers, of which the classifier is kept dense."""
    return layers(model, ["last"])


def with_fixed_masks(recipe: Recipe, ready: setup.ReadyModel) -> Recipe:
    """The recipe that keeps the zeros of the model's layers, apart from the classifier, zero.

    One-shot pruning at the start, to the sparsity that the weights have, prunes exactly those that are zero.
    """
    zeros, weights = zeros_of(ready)
    if not zeros:
        return recipe
    sparsity: dict[str, Any] = {"method": "oneshot", "at": 0, "target": zeros / weights, "keep_dense": ["last"]}
    return from_dict(recipe.as_dict() | {"sparsity": sparsity}, "transfer")


def zeros_of(ready: setup.ReadyModel) -> tuple[int, int]:
    """Zeros, and all weights, of the convolution and linear layers without the classifier."""
    last = classifier_of(ready.model)[0]
    counts = [count for name, count in zero_counts(ready.layers).items() if name != last]
    return sum(zeros for zeros, _ in counts), sum(weights for _, weights in counts)
