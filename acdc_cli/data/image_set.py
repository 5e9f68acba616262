"""A set of images on the disk: its splits, labels, classes and fingerprint."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from acdc_cli.data import corrupted_labels, relatives
from acdc_cli.data import manifest as manifests
from acdc_cli.data.beton import BetonFile
from acdc_cli.data.corrupted_labels import CorruptedLabels
from acdc_cli.data.data_set import DataSet, root_of
from acdc_cli.data.image_folder import class_folders, folder_source
from acdc_cli.data.known_sets import SPLITS, known_sets, require_same_classes
from acdc_cli.data.labels import Labels
from acdc_cli.data.manifest import Manifest
from acdc_cli.data.order import spread
from acdc_cli.data.shard import UNDIVIDED, Shard
from acdc_cli.data.write_beton import Source
from acdc_cli.errors import DataError
from acdc_cli.recipe.blocks.images import ImagesBlock
from acdc_cli.recipe.suggest import did_you_mean

if TYPE_CHECKING:
    import torch

    from acdc_cli.data.batches import Loader


@dataclass(frozen=True)
class Split:
    """The images of `train` or `val`."""

    labelled: Labels
    manifest: Manifest | None
    """None for images that were not written to a .beton file."""
    read: Callable[[], BetonFile | Source]

    @cached_property
    def images(self) -> BetonFile | Source:
        # at the first use, because walking a folder of a million images takes minutes on a network disk
        return self.read()

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.labelled.names

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.images.labels

    @property
    def fingerprint(self) -> str:
        """Changes when the images do."""
        if self.manifest is not None:
            return self.manifest.content_hash
        assert isinstance(self.images, Source)
        return self.images.fingerprint


@dataclass(frozen=True)
class ImageSet(DataSet):
    block: ImagesBlock
    splits: Mapping[str, Split] = field(default_factory=dict)
    """The splits that exist; at least one."""

    @property
    def labelled(self) -> Labels:
        return next(iter(self.splits.values())).labelled

    @property
    def fingerprint(self) -> dict[str, str]:
        return {name: split.fingerprint for name, split in self.splits.items()}

    def split(self, name: str) -> Split:
        """The split of this name. Raises DataError if it does not exist."""
        if name not in self.splits:
            raise DataError(_missing(self.block, name))
        return self.splits[name]

    def stored(self, split: str) -> int:
        return len(self.splits[split].labels) if split in self.splits else 0

    @cached_property
    def corrupted_labels(self) -> CorruptedLabels | None:  # type: ignore[override]
        """Raises DataError if the recipe corrupts more labels than possible."""
        if (wrong := self.block.corrupt_labels) is None:
            return None
        labels = self.split("train").labels
        used = spread(min(len(labels), self.block.images or len(labels)), len(labels))
        return corrupted_labels.corrupt(labels, used, self.classes, wrong.count, wrong.seed, wrong.classes == "all")

    # the loaders are imported here because they need this class

    def train_loader(self, seed: int, sizes: Sequence[int], device: torch.device, shard: Shard = UNDIVIDED) -> Loader:
        from acdc_cli.data.image_loaders import train_loader

        return train_loader(self, seed, sizes, device, shard)

    def val_loader(
        self, device: torch.device, split: str = "val", shard: Shard = UNDIVIDED, count: int | None = None
    ) -> Loader:
        from acdc_cli.data.image_loaders import val_loader

        return val_loader(self, device, split, shard, count)

    def calibration_loader(self, seed: int, device: torch.device) -> Loader:
        from acdc_cli.data.image_loaders import calibration_loader

        return calibration_loader(self, seed, device)


def open_set(block: ImagesBlock) -> ImageSet:
    """Open the set. Raises DataError if neither split exists, one is damaged, or their classes differ."""
    root = root_of(block)
    splits = {split: _opened(place) for split in SPLITS if (place := lies_at(root, split))}
    if not splits and is_as_published(block):
        splits = {split: _published(block.name, split, root) for split in SPLITS}
    if not splits and relatives.holds_classes(root):
        return ImageSet(block, only_tests=True, splits={"val": _opened(root)})
    if not splits:
        raise DataError(_missing(block, " and ".join(SPLITS)))
    require_same_classes(root, [split.class_names for split in splits.values()])
    return ImageSet(block, splits=splits)


def images_of(data: DataSet) -> ImageSet:
    """The set itself. Raises DataError for a set of other inputs."""
    if not isinstance(data, ImageSet):
        raise DataError(f"this works on images only, and {data.block.name} is a set of {data.block.inputs}")
    return data


def expected_set(block: ImagesBlock) -> tuple[int, int, bool]:
    """(classes, training images that are used, whether the set exists): of the set on the disk, else of the known
    set of this name.

    Raises DataError for a missing set of unknown size, and for labels that cannot be corrupted.
    """
    known = known_sets().get(block.name)
    missing = lies_at(root_of(block), "train") is None and not is_as_published(block)
    if missing and known and known.classes and known.train_images:
        classes, images, is_there = known.classes, known.train_images, False
    else:
        data = open_set(block)
        classes, images, is_there = data.classes, data.stored("train"), True
    used = min(images, block.images or images)
    if block.corrupt_labels:
        corrupted_labels.check(block.corrupt_labels.count, used, classes)
    return classes, used, is_there


def _opened(place: Path) -> Split:
    if place.is_dir():
        folder = place.parent
        return Split(Labels(class_folders(place)), None, lambda: folder_source(folder.name, place.name, folder))
    manifest = manifests.check_quick(place)
    return Split(manifest.labels, manifest, lambda: BetonFile(place))


def is_as_published(block: ImagesBlock) -> bool:
    """Whether the set lies there as its authors publish it."""
    known = known_sets().get(block.name)
    return known is not None and known.has_layout(root_of(block))


def _published(name: str, split: str, root: Path) -> Split:
    source = known_sets()[name].read(name, split, root, False)
    return Split(Labels(source.class_names, source.targets), None, lambda: source)


def lies_at(root: Path, split: str) -> Path | None:
    """The split's .beton file, else its folder of class folders."""
    beton, folder = root / f"{split}.beton", root / split
    # os.path's, which treat what may not be read as missing
    if os.path.isfile(beton):
        return beton
    return folder if os.path.isdir(folder) else None


def fingerprints(root: Path, thorough: bool) -> dict[str, str | None]:
    places = {split: place for split in SPLITS if (place := lies_at(root, split))}
    return {split: _fingerprint(place) if thorough or place.is_file() else None for split, place in places.items()}


def _fingerprint(place: Path) -> str:
    try:
        if place.is_dir():
            return folder_source(place.parent.name, place.name, place.parent).fingerprint
        return manifests.read(place).content_hash
    except DataError:
        return ""


def _missing(block: ImagesBlock, what: str) -> str:
    root = root_of(block).absolute()
    if os.path.isfile(root):
        return f"the data set {block.name} has no {what}: {root} is a file; --set data.path=FOLDER names a folder"
    if os.path.isdir(root) and not _may_read(root):
        return (
            f"the data set {block.name}: you may not read {root}; ask its owner for access, or --set data.path=FOLDER"
        )
    if block.name in relatives.NAMES:
        return (
            f"the data set {block.name} has no {what}: {root} must hold its class folders, as it is published; unpack "
            "it there, or give its location: --set data.path=FOLDER"
        )
    near = "" if block.path or block.name in known_sets() else did_you_mean(block.name, known_sets())
    return (
        f"the data set {block.name} has no {what}: {root} has neither a .beton file of that name nor a folder of "
        f"images{near or '.'} Write it: {_write_command(block)}. Or give its location: --set data.path=FOLDER"
    )


def _may_read(folder: Path) -> bool:
    try:
        os.scandir(folder).close()
    except PermissionError:
        return False
    return True


def _write_command(block: ImagesBlock) -> str:
    if block.name == "demo" and block.path is None:
        return "`acdc data write demo`"
    name = block.name if block.name in known_sets() else "folder"
    source = "" if name == "demo" else f" --source /path/to/{block.name}"
    return f"`acdc data write {name}{source} --out {root_of(block)}`"
