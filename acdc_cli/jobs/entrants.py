"""What `acdc bench` times: a run's or a checkpoint's model, or one drawn at random, in its variants."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from acdc_cli import console
from acdc_cli.deploy import random_zeros
from acdc_cli.deploy.contract import ModelDescription
from acdc_cli.deploy.shrinking import shrunk
from acdc_cli.deploy.tracing import Traced
from acdc_cli.jobs.export_run import Asked, open_model
from acdc_cli.models import build as models
from acdc_cli.models.preprocessing import preprocessing
from acdc_cli.quantities import ACCURACY, Quantity
from acdc_cli.recipe import code
from acdc_cli.recipe.kinds import measures_of
from acdc_cli.recipe.load import from_dict
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.run_dir import open_run
from acdc_cli.sparsity.masked import count_zeros
from acdc_cli.sparsity.prunable import layers


@dataclass(frozen=True)
class Random:
    """A model that was never trained, for planning: speed depends on shapes and zeros alone."""

    model: str
    sparsity: float
    """Share of zeros among the weights that are pruned."""
    zero_filters: float = 0.0
    """Share of the filters of each pruned convolution that are zero as a whole."""
    keep_dense: tuple[str, ...] = ("first", "last")
    classes: int = 1000
    input_size: int | None = None
    """Side of the images in pixels; None: that of the model's published weights, or 32 for models of small images."""


@dataclass(frozen=True)
class Entrant:
    """A model in its variants `dense`, `sparse` and, where there are channels to remove, `shrunk`."""

    name: str
    variants: Mapping[str, nn.Module]
    facts: ModelDescription
    inputs: Tensor
    """At least as many as the largest batch."""
    accuracy: Mapping[str, float | None]
    """By the task's headline, by variant; empty where it is not known."""
    headline: Quantity = ACCURACY
    """Headline of the model's task."""
    run: Path | None = None
    """The run directory that it is the result of."""


def opened(source: Path, model: str | None, data: str | None, batch: int, overrides: Sequence[str]) -> Entrant:
    """A run's models, or a checkpoint's; only the dense variant where no conv or linear weight is zero.

    model, data: as for `Asked`.  Raises what `open_model` raises.
    A sparse model without a dense one has a dense variant with random numbers in place of its zeros.
    """
    result = open_model(source, Asked(None, model, data), overrides, Traced())
    run = source if source.is_dir() else None
    headline = measures_of(result.facts.recipe.task.name).headline
    known = result.facts.outcome.get(headline.key)
    accuracy: dict[str, float | None] = dict.fromkeys(("sparse", "shrunk"), known)
    if not any(count_zeros([layer.parameter for layer in layers(result.model, ())])):
        variants, accuracy = {"dense": result.model}, {"dense": known}
    elif run and open_run(run).model_file("dense").exists():
        dense = open_model(run, Asked("dense", None, data), overrides, Traced()).model
        variants = _variants(dense, result.model, result.facts)
        accuracy["dense"] = result.facts.outcome.get(f"dense_{headline.key}")
    else:
        dense = copy.deepcopy(result.model)
        random_zeros.refill(layers(dense, ()), torch.Generator().manual_seed(0))
        variants = _variants(dense, result.model, result.facts)
    return Entrant(result.facts.name, variants, result.facts, result.inputs(batch), accuracy, headline, run)


def drawn(random: Random, batch: int) -> Entrant:
    """Raises ModelError for a model that does not exist, and for `keep_dense` that holds for no layer."""
    recipe = _recipe(random)
    torch.manual_seed(0)
    dense = models.build(recipe.model, random.classes).eval().requires_grad_(False)
    side = recipe.images.val_crop
    inputs = torch.randn(max(16, batch), 3, side, side)
    random_zeros.settle(dense, inputs)
    sparse = copy.deepcopy(dense)
    random_zeros.prune(layers(sparse, random.keep_dense), random.sparsity, random.zero_filters)
    random_zeros.settle(sparse, inputs)
    facts = ModelDescription(
        random.model, recipe, tuple(map(str, range(random.classes))), {"recipe": recipe.as_dict()}, {}
    )
    return Entrant(random.model, _variants(dense, sparse, facts), facts, inputs, {})


def _variants(dense: nn.Module, sparse: nn.Module, facts: ModelDescription) -> dict[str, nn.Module]:
    smaller = shrunk(sparse, facts.recipe.images.val_crop)
    console.say(smaller.described(facts.name))
    return {"dense": dense, "sparse": sparse} | ({"shrunk": smaller.model} if smaller.removed else {})


def _recipe(random: Random) -> Recipe:
    """The least that names this model and the size of its images."""
    side = random.input_size or preprocessing(random.model, Path()).crop or 32
    return from_dict(
        {
            "name": "bench",
            "epochs": 1,
            "device": "cpu",
            "model": code.named(random.model),
            "data": {"name": "folder", "path": ".", "batch_size": 1, "val_resize": side, "val_crop": side},
            "optim": {"name": "sgd", "lr": 1.0, "schedule": {"name": "linear"}},
            "sparsity": {"method": "dense"},
        },
        "acdc bench",
    )
