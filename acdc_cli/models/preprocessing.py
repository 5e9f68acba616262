"""The preprocessing of a published checkpoint: the resizing, crop, mean and deviation of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from acdc_cli.models import build
from acdc_cli.models.hub_weights import config_of

Interpolation = Literal["bilinear", "bicubic"]
Channels = tuple[float, float, float]
IMAGENET: tuple[Channels, Channels] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation."""


@dataclass(frozen=True)
class Preprocessing:
    origin: str
    """Its source, for the user."""
    resize: int | None = 256
    """The shorter side before the crop, in pixels; None if images are taken as they are."""
    crop: int | None = 224
    mean: Channels = IMAGENET[0]
    std: Channels = IMAGENET[1]
    interpolation: Interpolation = "bilinear"


def preprocessing(name: str, file: Path) -> Preprocessing:
    """The preprocessing for a model of this name with the weights of this file.

    It is that of the published weights whose file has the same name, else of the library's first weights for the model,
    else ImageNet's. Raises ModelError for a name that no library has.
    """
    source, model = build.source(name), name.rpartition(":")[2]
    if source in ("local", "file") and build.takes_images_as_they_are(model if source == "local" else name):
        return Preprocessing(f"{model} takes images as they are; ImageNet's mean and std", None, None)
    if config := (config_of(file) or {}).get("pretrained_cfg"):
        return _of_config(config, f"{file.parent.name}'s config.json")
    published: list[tuple[set[str], Preprocessing]] = [
        *(_of_torchvision(model) if source != "timm" else ()),
        *_of_timm(model),
    ]
    for files, each in published:
        if file.name in files:
            return each
    own = [each for _, each in published if source == "local" or each.origin.startswith(source)]
    return own[0] if own else Preprocessing("ImageNet's usual preprocessing")


def _of_torchvision(model: str) -> Iterator[tuple[set[str], Preprocessing]]:
    """(file names, preprocessing) of each of its weights, in the order of publication."""
    # here, as timm below, because it takes a second to import
    from torchvision import models as zoo

    if model not in zoo.list_models(module=zoo):
        return
    for weights in zoo.get_model_weights(model):
        transform = weights.transforms()
        yield (
            {weights.url.rpartition("/")[2]},
            Preprocessing(
                f"torchvision's {weights}",
                transform.resize_size[0],
                transform.crop_size[0],
                _channels(transform.mean),
                _channels(transform.std),
                "bicubic" if transform.interpolation.value == "bicubic" else "bilinear",
            ),
        )


def _of_timm(model: str) -> Iterator[tuple[set[str], Preprocessing]]:
    import timm

    if not timm.is_model(model):
        return
    # the default first
    for name in dict.fromkeys([model, *timm.list_pretrained(f"{model}.*")]):
        config = timm.get_pretrained_cfg(name)
        side = config.input_size[-1]
        yield (
            {f"{name}.safetensors", f"{name}.bin", f"{name}.pth", *_basenames(config.url, config.file)},
            Preprocessing(
                f"timm's {name}",
                int(side / (config.crop_pct or 0.875)),
                side,
                _channels(config.mean),
                _channels(config.std),
                "bicubic" if config.interpolation == "bicubic" else "bilinear",
            ),
        )


def _of_config(config: Mapping[str, Any], origin: str) -> Preprocessing:
    """As the hub's config.json describes it; timm's defaults where it is silent."""
    side = (config.get("input_size") or [3, 224, 224])[-1]
    return Preprocessing(
        origin,
        int(side / (config.get("crop_pct") or 0.875)),
        side,
        _channels(config.get("mean") or IMAGENET[0]),
        _channels(config.get("std") or IMAGENET[1]),
        "bicubic" if config.get("interpolation") == "bicubic" else "bilinear",
    )


def _basenames(*places: str | None) -> set[str]:
    return {place.rpartition("/")[2] for place in places if place}


def _channels(values: Any) -> Channels:
    red, green, blue = map(float, values)
    return red, green, blue
