"""The recipe of a transfer: an upstream model, a new classifier, and the protocol of P2 E on another set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from acdc_cli.data.image_set import ImageSet, open_set
from acdc_cli.data.known_sets import KnownSet, known_sets
from acdc_cli.jobs import setup
from acdc_cli.jobs.checkpoints import classes_of, judged
from acdc_cli.jobs.subjects import Checkpoint
from acdc_cli.models.weights import classifier_of
from acdc_cli.recipe.blocks.images import ImagesBlock
from acdc_cli.recipe.load import from_dict
from acdc_cli.recipe.schema import Recipe
from acdc_cli.sparsity.prunable import Layer, layers, zero_counts
from acdc_cli.transfer.cells import Mode

_EPOCHS, _DROPS = 150, [50, 100]
_LINEAR_LR = 0.01


@dataclass(frozen=True)
class Task:
    """A downstream set."""

    name: str
    data: ImageSet
    known: KnownSet | None
    """What is known of the set: its metric and learning rate; None for a set of the user's."""


def open_task(to: str) -> Task:
    """to: a folder with train and val, or a name of `acdc data list`. Raises DataError if a split is missing."""
    folder = Path(to)
    name = "folder" if folder.is_dir() else to
    data = open_set(ImagesBlock(name=name, path=to if folder.is_dir() else None, batch_size=64))
    for split in ("train", "val"):
        data.split(split)
    manifest = data.split("val").manifest
    known = known_sets().get(manifest.name if manifest else name)
    # a folder's own name says more than that it is a folder
    named = known is not None and known.classes is not None and manifest is not None
    return Task(manifest.name if manifest and named else folder.absolute().name, data, known)


def recipe_for(subject: Checkpoint, task: Task, mode: Mode, seed: int, overrides: Sequence[str] = ()) -> Recipe:
    """The training of all weights (`full`) or of the classifier alone (`linear`), which starts from the subject.

    The protocol is that of Iofinova et al. (2022), which P2 follows; images are prepared as for the upstream model.
    """
    values = subject.recipe.as_dict()
    block = values["data"]
    own = {
        "name": task.data.block.name,
        "path": task.data.block.path,
        "batch_size": 64,
        "resolution": block["val_crop"],
    }
    own |= dict.fromkeys(("images", "val_images", "corrupt_labels"))
    own["augmentation"] = {}
    lr = _LINEAR_LR if mode == "linear" else task.known.finetuning_lr if task.known else 0.001
    values |= {
        "name": f"transfer-{mode}",
        "epochs": _EPOCHS,
        "seed": seed,
        "fork": None,
        "ema": None,
        "task": {},
        "model": judged(subject.recipe, subject.weights).as_dict()["model"] | {"new_head": mode == "full"},
        "data": block | own,
        "optim": {
            "name": "sgd",
            "lr": lr,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "decay_norm_and_bias": True,
            "schedule": {"name": "step", "milestones": _DROPS},
        },
        "sparsity": {"method": "dense"},
        "checkpoint": {},
    }
    values["optim"]["schedule"]["milestones"] = _drops(values, overrides)
    return from_dict(values, "transfer", overrides)


def _drops(values: Mapping[str, Any], overrides: Sequence[str]) -> list[int]:
    """The epochs at which the learning rate drops, in proportion to the run's."""
    length = [override for override in overrides if override.startswith("epochs=")]
    plain = {**values, "optim": values["optim"] | {"schedule": {"name": "linear"}}}
    epochs = from_dict(plain, "transfer", length).epochs
    return [drop for drop in dict.fromkeys(epochs * drop // _EPOCHS for drop in _DROPS) if drop]


def upstream(recipe: Recipe, subject: Checkpoint) -> setup.ReadyModel:
    """The model with its own classifier, as validation uses it."""
    own = judged(recipe, subject.weights)
    ready = setup.build(own, classes_of(own))
    setup.require_sizes(ready, [recipe.data.val_size])
    return ready


def with_new_head(recipe: Recipe, classes: int) -> setup.ReadyModel:
    """The model from which all weights are trained: a new classifier on the upstream weights."""
    ready = setup.build(recipe, classes)
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
