"""`acdc models`: the models that a recipe can name, with their size, cost and prunable share."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from acdc_cli import console
from acdc_cli.cost.conventions import CONVENTION, forward_flops
from acdc_cli.cost.count import operations
from acdc_cli.errors import ModelError
from acdc_cli.jobs import setup
from acdc_cli.models import build
from acdc_cli.recipe import code
from acdc_cli.recipe.blocks.model import ModelBlock
from acdc_cli.sparsity.prunable import layers

COLUMNS = ("model", "library", "M params", "GFLOPs", "prunable %", "px")
_CLASSES, _SMALL_CLASSES = 1000, 10
_SIDE, _SMALL_SIDE = 224, 32


@dataclass(frozen=True)
class Listed:
    name: str
    library: str
    classes: int | None = None
    side: int | None = None
    """Side of the images whose cost is counted, in pixels."""
    params: int | None = None
    flops: int | None = None
    """FLOPs of one image's forward pass; None if it cannot be counted."""
    prunable: float | None = None
    """Share of the parameters that are weights of convolutions and linear layers."""
    problem: str | None = None
    """Why it was not counted; None: it was, or it is beyond the limit."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def matching(word: str | None) -> list[Listed]:
    """Every model with this text in its name, or whose name fits this pattern with `*`; the local ones for None.

    word: also FILE.py:FUNCTION, which is listed itself.  Raises ModelError if there is none.
    """
    if word and code.is_own(word):
        return [Listed(word, "file")]
    sources = build.names_by_source() if word else {"local": build.names()}
    pattern = f"*{word or ''}*" if "*" not in (word or "") else str(word)
    listed = [
        Listed(name, library)
        for library, names in sources.items()
        for name in names
        if fnmatch.fnmatchcase(name.lower(), pattern.lower())
    ]
    if not listed:
        raise ModelError(f"no model's name has {word!r}; `acdc models` lists the local ones, `acdc models '*'` all")
    return listed


def measured(models: Sequence[Listed], limit: int) -> list[Listed]:
    """The same with the numbers of the first `limit`, counted without memory for their weights."""
    title = "Counting"
    with console.progress(title) as bar:
        task = bar.add_task(title, total=min(limit, len(models)))
        counted = []
        for model in models[:limit]:
            counted.append(_measured(model))
            bar.advance(task)
    return [*counted, *models[limit:]]


def _measured(listed: Listed) -> Listed:
    small = listed.library in ("local", "file") and build.takes_images_as_they_are(listed.name)
    classes = _SMALL_CLASSES if small else _CLASSES
    try:
        own = listed.library == "file"
        block = ModelBlock.model_validate(code.named(listed.name if own else f"{listed.library}:{listed.name}"))
        model = setup.on_meta(block, classes)
        params = sum(weight.numel() for weight in model.parameters())
        side = _SMALL_SIDE if small else _side_of(model)
        weights = sum(layer.shape.numel() for layer in layers(model, ()))
    # whatever a library's constructor raises on the meta device
    except Exception as error:
        return Listed(listed.name, listed.library, problem=" ".join(str(error).split())[:200])
    try:
        flops: int | None = round(forward_flops(operations(model, side), None, CONVENTION))
        problem = None
    except Exception as error:
        flops, problem = None, " ".join(str(error).split())[:200]
    return Listed(listed.name, listed.library, classes, side, params, flops, weights / params, problem)


def _side_of(model: nn.Module) -> int:
    """The side of the images that timm's model is made for."""
    config: Any = getattr(model, "default_cfg", None) or {}
    return int((config.get("input_size") or (3, _SIDE, _SIDE))[-1])


def rows(models: Sequence[Listed]) -> list[tuple[str, ...]]:
    return [
        (
            model.name,
            model.library,
            "-" if model.params is None else f"{model.params / 1e6:.2f}",
            "-" if model.flops is None else f"{model.flops / 1e9:.3g}",
            "-" if model.prunable is None else f"{100 * model.prunable:.1f}",
            "-" if model.side is None else str(model.side),
        )
        for model in models
    ]
