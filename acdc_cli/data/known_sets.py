"""The data sets known by name: where images come from and how they are stored. Each file of `sets/` names some."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from acdc_cli.data.labels import Kind
from acdc_cli.data.write_beton import Settings, Source
from acdc_cli.errors import DataError
from acdc_cli.recipe.discovery import DATA_SETS
from acdc_cli.recipe.suggest import did_you_mean

SPLITS = ("train", "val")
AS_PIXELS = Settings(raw_share=1.0)


@dataclass(frozen=True)
class KnownSet:
    description: str
    """Description in `acdc data list`."""
    classes: int | None
    """None: the number of folders."""
    train_images: int | None
    """None: the number of files."""
    image_size: str
    read: Callable[[str, str, Path | None, bool], Source]
    """(name of the set, split, folder of --source, whether it may be downloaded) -> the split's images."""
    train: Settings = AS_PIXELS
    """How training images are stored by default."""
    val: Settings = AS_PIXELS
    """How validation images are stored by default."""
    has_layout: Callable[[Path], bool] = lambda folder: False
    """Whether a folder holds the set as its authors publish it, from where `read` and the torch loader read it."""
    metric: Literal["top1", "mean_per_class"] = "top1"
    """The accuracy that `acdc transfer` reports (P2, Table E.4)."""
    finetuning_lr: float = 0.001
    """Learning rate of `acdc transfer --mode full`."""


@cache
def known_sets() -> Mapping[str, KnownSet]:
    """The sets by name, the largest first and those of any size last. A new set is one file of `sets/` that names it
    in a dictionary `SETS`."""
    named: dict[str, KnownSet] = DATA_SETS.table("SETS")
    return dict(sorted(named.items(), key=lambda item: -(item[1].train_images or 0)))


def known_set(name: str) -> KnownSet:
    """Raises DataError for an unknown name."""
    if name not in (known := known_sets()):
        raise DataError(f"no data set is called {name!r}, only {', '.join(known)}{did_you_mean(name, known)}")
    return known[name]


def read_set(name: str, root: Path | None = None, download: bool = False) -> dict[str, Source]:
    """The splits by name. Raises DataError for an unknown set, or if its images are missing or damaged."""
    known = known_set(name)
    splits = {split: known.read(name, split, root, download) for split in SPLITS}
    require_same_classes(root or name, [source.class_names for source in splits.values()])
    return splits


def require_same_classes(where: object, splits: Sequence[Sequence[str]]) -> None:
    """Raises DataError if the splits have different classes."""
    for names in splits[1:]:
        if names != splits[0]:
            differing = sorted(set(names) ^ set(splits[0]))
            only = f"only one of them has {', '.join(differing[:5])}" if differing else "they are ordered differently"
            raise DataError(f"{where}: train and val hold different classes; {only}. Make both from the same source.")


def array_source(
    name: str,
    split: str,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    class_names: tuple[str, ...],
    targets: Kind = "class",
) -> Source:
    """images: (samples, height, width, 3)."""
    fingerprint = hashlib.sha256(np.ascontiguousarray(images).data)
    fingerprint.update(labels.tobytes())
    return Source(name, split, images, labels, class_names, fingerprint.hexdigest(), targets=targets)
