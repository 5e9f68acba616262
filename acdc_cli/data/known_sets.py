"""The data sets known by name: where images come from and how they are stored. Each file of `sets/` names some."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acdc_cli.data.write_beton import Settings, Source
from acdc_cli.errors import DataError
from acdc_cli.recipe.discovery import DATA_SETS
from acdc_cli.recipe.suggest import did_you_mean

SPLITS = ("train", "val")
AS_PIXELS = Settings(raw_share=1.0)


@dataclass(frozen=True)
class KnownSet:
    description: str
    """A line of `acdc data list`."""
    classes: int | None
    """None: as many as there are folders."""
    train_images: int | None
    """None: as many as there are files."""
    image_size: str
    read: Callable[[str, Path | None, bool], tuple[Source, Source]]
    """(name of the set, folder of --source, whether --download allows it) -> the splits, `train` and `val`."""
    train: Settings = AS_PIXELS
    """How training images are stored unless options say otherwise …"""
    val: Settings = AS_PIXELS
    """… and validation images."""


@cache
def known_sets() -> Mapping[str, KnownSet]:
    """By name, the largest first and those of any size last. A new set is one new file of `sets/` that names it in a
    dictionary `SETS`."""
    named: dict[str, KnownSet] = DATA_SETS.table("SETS")
    return dict(sorted(named.items(), key=lambda item: -(item[1].train_images or 0)))


def known_set(name: str) -> KnownSet:
    """Raises DataError for an unknown name."""
    if name not in (known := known_sets()):
        raise DataError(f"no data set is called {name!r}, only {', '.join(known)}{did_you_mean(name, known)}")
    return known[name]


def array_source(
    name: str, split: str, images: NDArray[np.uint8], labels: NDArray[np.int64], class_names: tuple[str, ...]
) -> Source:
    """images: (samples, height, width, 3)."""
    fingerprint = hashlib.sha256(np.ascontiguousarray(images).data)
    fingerprint.update(labels.tobytes())
    return Source(name, split, images, labels, class_names, fingerprint.hexdigest())
