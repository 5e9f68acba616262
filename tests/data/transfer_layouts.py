"""Small folders with the exact layouts of the sets of transfer learning, and the tables that fit them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acdc_cli.data.sets.transfer_sets import LAYOUTS, Layout

CLASSES = 2
SIZES = {
    "sun397": (2 * 50, 2 * 50),
    "aircraft": (4, 2),
    "caltech101": (2 * 30, 2 * 2),
    "caltech256": (2 * 60, 2 * 2),
    "cars": (4, 2),
    "dtd": (4, 2),
    "flowers102": (4, 2),
    "food101": (4, 2),
    "pets": (4, 2),
}
"""Images of train and val in the small sets; two classes each."""


def small(name: str) -> Layout:
    train, val = SIZES[name]
    return replace(LAYOUTS[name], classes=CLASSES, train=train, val=val)


def make(name: str, root: Path) -> Path:
    _MAKERS[name](root / LAYOUTS[name].folder)
    return root


def accept_small_files(patch: pytest.MonkeyPatch) -> None:
    """torchvision checks the digest of Flowers' label files, and knows its names of classes by heart."""
    from torchvision.datasets import Flowers102

    patch.setattr(Flowers102, "_check_integrity", lambda self: True)
    patch.setattr(Flowers102, "classes", ["rose", "tulip"])


def _image(file: Path, grey: bool = False) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if grey else "RGB", (8, 8)).save(file)


def _text(file: Path, *lines: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def _sun397(home: Path) -> None:
    _text(home / "ClassName.txt", "/a/abbey", "/a/airplane_cabin")
    for name in ("abbey", "airplane_cabin"):
        for number in range(103):
            _image(home / "a" / name / f"sun_{name}{number:04d}.jpg", grey=number == 0)


def _aircraft(home: Path) -> None:
    _text(home / "data/variants.txt", "707-320", "A300 B4")
    images = {"trainval": "1234", "test": "56"}
    for split, numbers in images.items():
        lines = [f"000{number} {('707-320', 'A300 B4')[int(number) % 2]}" for number in numbers]
        _text(home / f"data/images_variant_{split}.txt", *lines)
        for number in numbers:
            _image(home / f"data/images/000{number}.jpg")


def _caltech101(home: Path) -> None:
    for name in ("BACKGROUND_Google", "accordion", "ant"):
        for number in range(32):
            _image(home / "101_ObjectCategories" / name / f"image_{number + 1:04d}.jpg", grey=number == 0)


def _caltech256(home: Path) -> None:
    for label, name in enumerate(("001.ak47", "002.american-flag"), 1):
        for number in range(62):
            _image(home / "256_ObjectCategories" / name / f"{label:03d}_{number + 1:04d}.jpg")


def _cars(home: Path) -> None:
    from scipy.io import savemat

    devkit = home / "devkit"
    devkit.mkdir(parents=True)
    savemat(devkit / "cars_meta.mat", {"class_names": np.array(["AM General Hummer", "Acura RL"], object)})
    for split, file, count in (
        ("train", devkit / "cars_train_annos.mat", 4),
        ("test", home / "cars_test_annos_withlabels.mat", 2),
    ):
        kinds = [("fname", object), ("class", np.int64)]
        rows = np.array([(f"{number:05d}.jpg", number % 2 + 1) for number in range(count)], kinds)
        savemat(file, {"annotations": rows})
        for number in range(count):
            _image(home / f"cars_{split}" / f"{number:05d}.jpg")


def _dtd(home: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        files = [f"{name}/{name}_{number:04d}.jpg" for name in ("banded", "zigzagged")]
        _text(home / f"dtd/labels/{split}1.txt", *files)
        for file in files:
            _image(home / "dtd/images" / file)


def _flowers(home: Path) -> None:
    from scipy.io import savemat

    for number in range(1, 7):
        _image(home / f"jpg/image_{number:05d}.jpg")
    savemat(home / "imagelabels.mat", {"labels": np.array([[1, 2, 1, 2, 1, 2]])})
    savemat(home / "setid.mat", {"trnid": np.array([[1, 2]]), "valid": np.array([[3, 4]]), "tstid": np.array([[5, 6]])})


def _food(home: Path) -> None:
    for split, count in (("train", 2), ("test", 1)):
        lists = {name: [f"{name}/{split}{number}" for number in range(count)] for name in ("apple_pie", "waffles")}
        _text(home / f"meta/{split}.json", json.dumps(lists))
        for file in (file for files in lists.values() for file in files):
            _image(home / f"images/{file}.jpg")


def _pets(home: Path) -> None:
    for split, numbers in (("trainval", (1, 2)), ("test", (3,))):
        images = [
            (f"{name}_{number}", label) for label, name in enumerate(("Abyssinian", "pug"), 1) for number in numbers
        ]
        _text(home / f"annotations/{split}.txt", *(f"{image} {label} {label} 1" for image, label in images))
        for image, _ in images:
            _image(home / f"images/{image}.jpg")


_MAKERS: dict[str, Callable[[Path], None]] = {
    "sun397": _sun397,
    "aircraft": _aircraft,
    "caltech101": _caltech101,
    "caltech256": _caltech256,
    "cars": _cars,
    "dtd": _dtd,
    "flowers102": _flowers,
    "food101": _food,
    "pets": _pets,
}
