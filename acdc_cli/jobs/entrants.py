"""What `acdc bench` times: a run's or a checkpoint's model, or one drawn at random, in its variants."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from acdc_cli.deploy import random_zeros
from acdc_cli.deploy.contract import Facts
from acdc_cli.deploy.tracing import Traced
from acdc_cli.jobs.export_run import Asked, open_model
from acdc_cli.models import build as models
from acdc_cli.models.preprocessing import preprocessing
from acdc_cli.recipe.load import from_dict
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.run_dir import open_run
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
    facts: Facts
    inputs: Tensor
    """At least as many as the largest batch."""
    top1: Mapping[str, float | None]
    """By variant; empty where it is not known."""
    run: Path | None = None
    """The run directory that it is the result of."""


def opened(source: Path, asked: Asked, batch: int, overrides: Sequence[str]) -> Entrant:
    """A run's models, or a checkpoint's. Raises what `open_model` raises.

    Without a dense model of the run, the dense variant has the same weights with random numbers in place of zeros.
    """
    found = open_model(source, asked, overrides, Traced())
    top1 = {"sparse": found.facts.outcome.get("top1")}
    run = open_run(source) if source.is_dir() else None
    if run and run.model_file("dense").exists() and run.model_file("sparse").exists():
        dense = open_model(source, replace(asked, which="dense"), overrides, Traced()).model
        top1["dense"] = found.facts.outcome.get("dense_top1")
    else:
        dense = copy.deepcopy(found.model)
        random_zeros.refill(layers(dense, ()), torch.Generator().manual_seed(0))
    variants = {"dense": dense, "sparse": found.model}
    return Entrant(found.facts.name, variants, found.facts, found.inputs(batch), top1, source if run else None)


def drawn(random: Random, batch: int) -> Entrant:
    """Raises ModelError for a model that does not exist, and for `keep_dense` that holds for no layer."""
    recipe = _recipe(random)
    torch.manual_seed(0)
    dense = models.build(recipe.model, random.classes).eval().requires_grad_(False)
    side = recipe.data.val_crop
    inputs = torch.randn(max(16, batch), 3, side, side)
    random_zeros.settle(dense, inputs)
    sparse = copy.deepcopy(dense)
    random_zeros.prune(layers(sparse, random.keep_dense), random.sparsity, random.zero_filters)
    random_zeros.settle(sparse, inputs)
    facts = Facts(random.model, recipe, tuple(map(str, range(random.classes))), {"recipe": recipe.as_dict()}, {})
    return Entrant(random.model, {"dense": dense, "sparse": sparse}, facts, inputs, {})


def _recipe(random: Random) -> Recipe:
    """The least that names this model and the size of its images."""
    side = random.input_size or preprocessing(random.model, Path()).crop or 32
    return from_dict(
        {
            "name": "bench",
            "epochs": 1,
            "device": "cpu",
            "model": {"name": random.model},
            "data": {"name": "folder", "path": ".", "batch_size": 1, "val_resize": side, "val_crop": side},
            "optim": {"name": "sgd", "lr": 1.0, "schedule": {"name": "linear"}},
            "sparsity": {"method": "dense"},
        },
        "acdc bench",
    )
