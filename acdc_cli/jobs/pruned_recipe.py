"""What `acdc prune` is asked for, and the recipe of a run that prunes a trained model before its first step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acdc_cli.errors import RunError
from acdc_cli.jobs.checkpoints import Which, judged, names_its_model, recipe_of
from acdc_cli.jobs.setup import keep_dense
from acdc_cli.recipe.discovery import METHODS
from acdc_cli.recipe.kinds import method_config
from acdc_cli.recipe.load import from_dict
from acdc_cli.recipe.schema import Recipe
from acdc_cli.schedule.sizes import sizes

_FINE_TUNING = {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "schedule": {"name": "cosine"}}


@dataclass(frozen=True)
class Asked:
    """What the command line names."""

    source: Path
    method: str
    targets: Sequence[float]
    which: Which | None = None
    """Which of a run's models; None: the dense one if it exists."""
    model: str | None = None
    data: str | None = None
    overrides: tuple[str, ...] = ()


def methods_at_once() -> dict[str, str]:
    """The methods that prune a trained model without training it, with what they do."""
    return {name: text for name, text in METHODS.described().items() if method_config(name).at_once is not None}


def targets_of(text: str) -> list[float]:
    """The sparsities of `0.8,0.9`. Raises RunError."""
    try:
        targets = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise RunError(f"--target: expected sparsities such as 0.9 or 0.8,0.9, found {text}") from error
    if wrong := [f"{target:g}" for target in targets if not 0 < target < 1]:
        raise RunError(f"--target: expected sparsities above 0 and below 1, found {', '.join(wrong)}")
    if len(set(targets)) < len(targets):
        raise RunError(f"--target: {text} names a sparsity twice")
    return targets


def recipes(asked: Asked, weights: Path) -> list[Recipe]:
    """A recipe for each target: that of the source, `keep_dense` included, with the method at its first epoch, which is
    its only one.

    weights: the file that the models start from.  Raises RunError for a method that needs training, and the errors of
    the recipe.
    """
    at_once = method_config(asked.method).at_once
    if at_once is None:
        raise RunError(f"{asked.method} prunes while it trains; acdc prune takes {', '.join(methods_at_once())}")
    # the keys of another method would be unknown to the recipe of the source
    of_source = [override for override in asked.overrides if not override.startswith("sparsity.")]
    which = asked.which if asked.source.is_dir() else None
    known = names_its_model(asked.source)
    source = judged(recipe_of(asked.source, which, asked.model, asked.data, of_source), weights, asked.data)
    base = _without_training(source) if known else _fine_tuning(source)
    stem = source.name if known else re.sub(r"[^A-Za-z0-9._-]+", "-", asked.source.stem).strip("-._")[:60] or "model"
    return [
        from_dict(
            base
            | {
                "name": f"{stem[:60]}-{asked.method}-{target:g}",
                "sparsity": {"method": asked.method, "target": target, "keep_dense": keep_dense(source), **at_once},
            },
            f"acdc prune --method {asked.method}",
            asked.overrides,
        )
        for target in asked.targets
    ]


def _fine_tuning(source: Recipe) -> dict[str, Any]:
    """For a checkpoint that records no recipe: its preprocessing, and settings with which a fork may fine-tune it."""
    values, data = _without_training(source), source.images
    # images that are validated as they are, are trained on as they are
    augment = "pad_crop" if data.val_crop == data.val_resize else data.augment
    values["data"] |= {"resolution": data.val_crop, "augment": augment}
    return values | {"optim": _FINE_TUNING}


def _without_training(source: Recipe) -> dict[str, Any]:
    """The source's keys without those that belong to the length of its training."""
    values = source.as_dict()
    values["data"] |= source.data.settled(sizes(source)[-1])
    values["optim"] |= {"schedule": {"name": "cosine"}}
    values["checkpoint"] |= {"keep_states": []}
    return values | {"epochs": 1, "ema": None, "fork": None}
