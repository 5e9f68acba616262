"""The sets of transfer learning, read from small folders of their exact layouts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import transfer_layouts
from transfer_layouts import make, small

from acdc_cli.data.known_sets import known_set
from acdc_cli.data.sets.transfer_sets import LAYOUTS
from acdc_cli.data.write_beton import Source
from acdc_cli.errors import DataError

# P2, Table E.4: classes, images of train and test, metric
TABLE = {
    "sun397": (397, 19_850, 19_850, "top1"),
    "aircraft": (100, 6_667, 3_333, "mean_per_class"),
    "caltech101": (101, 3_030, 5_647, "mean_per_class"),
    "caltech256": (257, 15_420, 15_187, "mean_per_class"),
    "cars": (196, 8_144, 8_041, "top1"),
    "dtd": (47, 3_760, 1_880, "top1"),
    "flowers102": (102, 2_040, 6_149, "mean_per_class"),
    "food101": (101, 75_750, 25_250, "top1"),
    "pets": (37, 3_680, 3_669, "mean_per_class"),
}


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    transfer_layouts.accept_small_files(monkeypatch)


def test_the_table_is_the_papers() -> None:
    assert {name: (each.classes, each.train, each.val, each.metric) for name, each in LAYOUTS.items()} == TABLE
    others = {"birdsnap": (500, 32_677), "cifar10": (10, 50_000), "cifar100": (100, 50_000)}
    for name, sizes in others.items():
        assert (known_set(name).classes, known_set(name).train_images) == sizes
        assert known_set(name).metric == "top1"
    faster = [name for name in (*TABLE, *others) if known_set(name).finetuning_lr != 0.001]
    assert {name: known_set(name).finetuning_lr for name in faster} == {"aircraft": 0.01, "cars": 0.01}


def read(name: str, root: Path, split: str) -> Source:
    return small(name).source(name, split, root, download=False)


@pytest.mark.parametrize("name", ["aircraft", "cars", "dtd", "flowers102", "food101", "pets"])
def test_a_set_with_a_split_has_its_own(name: str, tmp_path: Path) -> None:
    train, val = (
        read(name, make(name, tmp_path) if split == "train" else tmp_path, split) for split in ("train", "val")
    )
    assert sorted(train.labels.tolist()) == [0, 0, 1, 1]
    assert sorted(val.labels.tolist()) == [0, 1]
    assert not set(train.images) & set(val.images)
    shown = {
        "aircraft": ("fgvc-aircraft-2013b/data/images/0005.jpg", "A300 B4"),
        "cars": ("stanford_cars/cars_test/00001.jpg", "Acura RL"),
        "dtd": ("dtd/dtd/images/zigzagged/zigzagged_0002.jpg", "zigzagged"),
        "flowers102": ("flowers-102/jpg/image_00006.jpg", "tulip"),
        "food101": ("food-101/images/waffles/test0.jpg", "waffles"),
        "pets": ("oxford-iiit-pet/images/pug_3.jpg", "Pug"),
    }
    file, class_name = shown[name]
    assert val.class_names[val.labels[list(val.images).index(file)]] == class_name


@pytest.mark.parametrize("name", ["sun397", "caltech101", "caltech256"])
def test_a_set_without_a_split_gets_one_of_the_papers_size_which_is_always_the_same(name: str, tmp_path: Path) -> None:
    make(name, tmp_path)
    train, val = read(name, tmp_path, "train"), read(name, tmp_path, "val")
    assert "split drawn from seed 0" in LAYOUTS[name].known().description
    assert set(Counter(train.labels.tolist()).values()) == {transfer_layouts.SIZES[name][0] // 2}
    assert not set(train.images) & set(val.images)
    assert read(name, tmp_path, "train").fingerprint == train.fingerprint
    assert not any("BACKGROUND" in str(image) for image in (*train.images, *val.images))
    folders = [str(image).split("/")[-2] for image in train.images]
    assert folders == [train.class_names[label].split("/")[-1] for label in train.labels]


def test_a_set_that_is_not_there_says_where_it_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name the folder that holds dtd/ with --source"):
        LAYOUTS["dtd"].source("dtd", "train", None, download=False)
    with pytest.raises(DataError, match="has no folder dtd; unpack the set there, or fetch it with --download"):
        read("dtd", tmp_path, "train")
    with pytest.raises(DataError, match="cars cannot be downloaded"):
        LAYOUTS["cars"].source("cars", "train", tmp_path, download=True)
    with pytest.raises(DataError, match=r"has no folder stanford_cars; unpack the set there$"):
        read("cars", tmp_path, "train")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "file", "content", "expected"),
    [
        ("dtd", "dtd/dtd/labels/train1.txt", "banded/banded_0000.jpg\n", "lists 3 train images of 2 classes, not 4"),
        ("dtd", "dtd/dtd/labels/train1.txt", "banded\n", "not as torchvision reads it"),
        ("dtd", "dtd/dtd/labels/val1.txt", None, "not as torchvision reads it"),
        ("dtd", "dtd/dtd/images/banded/banded_0000.jpg", None, "1 of 4 train images are missing, such as .*banded"),
        (
            "aircraft", "fgvc-aircraft-2013b/data/images_variant_trainval.txt",
            "0001 A300 B4\n0002 A300 B4\n0003 A300 B4\n0004 A300 B4\n", "its 2 classes: class 0 is missing",
        ),
        ("aircraft", "fgvc-aircraft-2013b/data/variants.txt", "707-320\n", r"torchvision reads it \('A300 B4'\)"),
        ("caltech101", "caltech101/101_ObjectCategories/bee/image_0001.jpg", "", "class bee has only 1 images"),
    ],
)  # fmt: skip
def test_a_label_file_that_does_not_match_is_one_line(
    tmp_path: Path, name: str, file: str, content: str | None, expected: str
) -> None:
    changed = make(name, tmp_path) / file
    changed.parent.mkdir(exist_ok=True)
    changed.unlink() if content is None else changed.write_text(content)
    with pytest.raises(DataError, match=expected) as error:
        read(name, tmp_path, "train")
    assert "\n" not in str(error.value)
