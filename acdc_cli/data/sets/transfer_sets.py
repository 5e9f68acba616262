"""The sets of transfer learning (P2, Table E.4) beside CIFAR, as torchvision reads them, with the paper's splits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from acdc_cli.data.known_sets import KnownSet
from acdc_cli.data.sets.photographs import ORIGINAL, read_folder
from acdc_cli.data.write_beton import Source
from acdc_cli.errors import DataError

Listing = tuple[Sequence[str], Sequence[int], Sequence[str]]
"""Image files, their labels, and the names of the classes."""
Reader = Callable[[Path, str, bool], Listing]
"""(folder of --source, split, whether it may be downloaded) -> the split's images."""
SEED = 0
"""Seed of the splits that acdc draws; they are the same everywhere."""
_MALFORMED = (OSError, RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError)
"""What torchvision's readers raise over files that are missing or not as they expect."""


@dataclass(frozen=True)
class Layout:
    """A set of Table E.4."""

    title: str
    folder: str
    """In the --source folder."""
    classes: int
    train: int
    val: int
    read: Reader
    metric: Literal["top1", "mean_per_class"] = "top1"
    finetuning_lr: float = 0.001
    drawn: bool = False
    """The set has no split of its own: acdc draws one of the paper's size."""
    can_download: bool = True

    def known(self) -> KnownSet:
        split = f", split drawn from seed {SEED}" if self.drawn else ""
        download = ", or --download" if self.can_download else ""
        return KnownSet(
            description=f"{self.title}: --source FOLDER with {self.folder}/{download}{split}",
            classes=self.classes,
            train_images=self.train,
            image_size="varies",
            read=self.source,
            train=ORIGINAL,
            val=ORIGINAL,
            metric=self.metric,
            finetuning_lr=self.finetuning_lr,
        )

    def source(self, name: str, split: str, root: Path | None, download: bool) -> Source:
        """Raises DataError if the set is missing, incomplete, or not as torchvision reads it."""
        if root is None:
            raise DataError(f"{name}: name the folder that holds {self.folder}/ with --source FOLDER")
        if download and not self.can_download:
            raise DataError(f"{name} cannot be downloaded; give the folder that holds {self.folder}/ with --source")
        if not download and not (root / self.folder).is_dir():
            hint = ", or fetch it with --download" if self.can_download else ""
            raise DataError(f"{name}: {root} has no folder {self.folder}; unpack the set there{hint}")
        try:
            files, labels, names = self.read(root, split, download)
        except _MALFORMED as cause:
            reason = " ".join(str(cause).split()) or type(cause).__name__
            raise DataError(
                f"{name}: {root / self.folder} is not as torchvision reads it ({reason[:200]}); unpack the set again"
            ) from cause
        self._require(name, split, root, files, labels, names)
        return _source(name, split, root, files, np.asarray(labels, np.int64), tuple(names))

    def _require(
        self, name: str, split: str, root: Path, files: Sequence[str], labels: Sequence[int], names: Sequence[str]
    ) -> None:
        expected = {"train": self.train, "val": self.val}[split]
        if (len(names), len(files)) != (self.classes, expected):
            raise DataError(
                f"{name}: {root / self.folder} lists {len(files):,} {split} images of {len(names)} classes, not "
                f"{expected:,} of {self.classes}; unpack the set again, or write your own split as `folder`"
            )
        if wrong := set(range(self.classes)).symmetric_difference(labels):
            raise DataError(
                f"{name}: the labels of {split} in {root / self.folder} do not match its {self.classes} classes: class "
                f"{min(wrong)} is {'missing' if min(wrong) in range(self.classes) else 'unknown'}; unpack the set again"
            )
        if missing := [file for file in files if not os.path.isfile(file)]:
            raise DataError(
                f"{name}: {len(missing):,} of {len(files):,} {split} images are missing, such as {missing[0]}; unpack "
                "the set again"
            )


def _source(
    name: str, split: str, root: Path, files: Sequence[str], labels: NDArray[np.int64], names: tuple[str, ...]
) -> Source:
    fingerprint = hashlib.sha256()
    paths = [os.path.relpath(file, root) for file in files]
    for path, label in zip(paths, labels.tolist(), strict=True):
        size = os.path.getsize(root / path)
        fingerprint.update(f"{path}\0{size}\0{label}\0".encode(errors="surrogateescape"))
    return Source(name, split, paths, labels, names, fingerprint.hexdigest(), root)


def _official(reader: str, train: Sequence[str], val: str = "test") -> Reader:
    """A set with a split of its own. reader: torchvision's class.  train, val: its names of the splits."""

    def read(root: Path, split: str, download: bool) -> Listing:
        files: list[str] = []
        labels: list[int] = []
        for each in train if split == "train" else [val]:
            images = _open(reader, root, split=each, download=download)
            pairs = _pairs(images)
            files += [str(file) for file, _ in pairs]
            labels += [int(label) for _, label in pairs]
        return files, labels, list(images.classes)

    return read


def _pairs(images: Any) -> list[tuple[Any, Any]]:
    if hasattr(images, "_samples"):
        return list(images._samples)
    files = images._images if hasattr(images, "_images") else images._image_files
    return list(zip(files, images._labels, strict=True))


def _drawn(listed: Callable[[Path, bool], Iterator[tuple[str, str]]], train: int, val: int | None = None) -> Reader:
    """A split of `train` images of each class and `val` others (None: all others), drawn from the seed.

    listed: (image file, name of its class) of the whole set.
    """

    def read(root: Path, split: str, download: bool) -> Listing:
        by_class: dict[str, list[str]] = {}
        for file, name in listed(root, download):
            by_class.setdefault(name, []).append(file)
        files: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(sorted(by_class)):
            there = sorted(by_class[name])
            if len(there) < train + (val or 1):
                raise ValueError(f"class {name} has only {len(there)} images")
            order = np.random.default_rng([SEED, label]).permutation(len(there))
            chosen = order[:train] if split == "train" else order[train : None if val is None else train + val]
            files += [there[index] for index in sorted(chosen)]
            labels += [label] * len(chosen)
        return files, labels, sorted(by_class)

    return read


def _sun397(root: Path, download: bool) -> Iterator[tuple[str, str]]:
    images = _open("SUN397", root, download=download)
    for file, label in zip(images._image_files, images._labels, strict=True):
        yield str(file), images.classes[label]


def _caltech(reader: str, file: str) -> Callable[[Path, bool], Iterator[tuple[str, str]]]:
    """file: below the reader's root, of a category, its number from 1, and an image's number."""

    def listed(root: Path, download: bool) -> Iterator[tuple[str, str]]:
        images = _open(reader, root, download=download)
        for label, index in zip(images.y, images.index, strict=True):
            name = images.categories[label]
            yield os.path.join(images.root, file.format(name=name, number=label + 1, index=index)), name

    return listed


def _open(reader: str, root: Path, **options: Any) -> Any:
    # here, so that `acdc data list` does not load torch
    from torchvision import datasets

    return getattr(datasets, reader)(str(root), **options)


LAYOUTS = {
    "sun397": Layout("SUN397", "SUN397", 397, 19_850, 19_850, _drawn(_sun397, 50, 50), drawn=True),
    "aircraft": Layout(
        "FGVC Aircraft", "fgvc-aircraft-2013b", 100, 6_667, 3_333, _official("FGVCAircraft", ["trainval"]),
        "mean_per_class", 0.01,
    ),
    "caltech101": Layout(
        "Caltech-101", "caltech101", 101, 3_030, 5_647,
        _drawn(_caltech("Caltech101", "101_ObjectCategories/{name}/image_{index:04d}.jpg"), 30),
        "mean_per_class", drawn=True,
    ),
    "caltech256": Layout(
        "Caltech-256", "caltech256", 257, 15_420, 15_187,
        _drawn(_caltech("Caltech256", "256_ObjectCategories/{name}/{number:03d}_{index:04d}.jpg"), 60),
        "mean_per_class", drawn=True,
    ),
    "cars": Layout(
        "Stanford Cars", "stanford_cars", 196, 8_144, 8_041, _official("StanfordCars", ["train"]),
        finetuning_lr=0.01, can_download=False,
    ),
    "dtd": Layout("Describable Textures", "dtd", 47, 3_760, 1_880, _official("DTD", ["train", "val"])),
    "flowers102": Layout(
        "Oxford Flowers", "flowers-102", 102, 2_040, 6_149, _official("Flowers102", ["train", "val"]), "mean_per_class"
    ),
    "food101": Layout("Food-101", "food-101", 101, 75_750, 25_250, _official("Food101", ["train"])),
    "pets": Layout(
        "Oxford-IIIT Pets", "oxford-iiit-pet", 37, 3_680, 3_669, _official("OxfordIIITPet", ["trainval"]),
        "mean_per_class",
    ),
}  # fmt: skip
"""Classes, images and metric are those of Table E.4."""

SETS = {name: layout.known() for name, layout in LAYOUTS.items()} | {
    "birdsnap": KnownSet(
        description="Birdsnap: --source FOLDER with train/ and val/, one folder per species",
        classes=500,
        # the paper's: the images lie at addresses of which more and more are gone
        train_images=32_677,
        image_size="varies",
        read=read_folder,
        train=ORIGINAL,
        val=ORIGINAL,
    )
}
