"""CelebA as its authors publish it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from celeba_files import NAMES, attributes, celeba
from PIL import Image
from torchvision.datasets import CelebA

from acdc_cli.data.data_set import open_set
from acdc_cli.data.inventory import WriteOptions, write_set
from acdc_cli.data.known_sets import read_set
from acdc_cli.data.labels import unpacked
from acdc_cli.data.torch import FolderImages
from acdc_cli.errors import DataError
from acdc_cli.recipe.blocks.images import ImagesBlock

_BLOCK = {"batch_size": 2, "loader": "torch", "workers": 0, "val_resize": 16, "val_crop": 16}


def test_training_and_validation_are_parts_0_and_1_and_the_test_part_has_a_name(tmp_path: Path) -> None:
    celeba(tmp_path, parts=(0, 2, 1, 0, 2, 2))
    for name, val in (("celeba", ["3"]), ("celeba_test", ["2", "5", "6"])):
        train, other = read_set(name, tmp_path).values()
        assert [Path(str(path)).name for path in train.images] == ["000001.jpg", "000004.jpg"]
        assert [Path(str(path)).name for path in other.images] == [f"00000{number}.jpg" for number in val]


def test_the_labels_are_those_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = celeba(tmp_path / "celeba")
    for file, header in (
        ("identity_CelebA", ""),
        ("list_bbox_celeba", "8\nx y\n"),
        ("list_landmarks_align_celeba", "8\nx y\n"),
    ):
        rows = "".join(f"{number:06d}.jpg 1{' 2' if header else ''}\n" for number in range(1, 9))
        (root / f"{file}.txt").write_text(header + rows)
    monkeypatch.setattr(CelebA, "_check_integrity", lambda self: True)
    for split, theirs in (("train", "train"), ("val", "valid")):
        source, expected = read_set("celeba", tmp_path)[split], CelebA(str(tmp_path), split=theirs)
        assert unpacked(source.labels, 40).astype(int).tolist() == expected.attr.tolist()
        # a trailing blank in the header is a name for torchvision
        assert list(source.class_names) == expected.attr_names[:40]


@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_and_an_archive_are_read_where_they_lie_and_written(tmp_path: Path, zipped: bool) -> None:
    root = celeba(tmp_path / "source", zipped=zipped)
    write_set("celeba", WriteOptions(source=root, out=tmp_path / "written", workers=0))
    shown = []
    for place in (root, tmp_path / "written"):
        data = open_set(ImagesBlock(name="celeba", path=str(place), **_BLOCK))
        assert (data.class_names, data.labelled.kind) == (NAMES, "bits")
        with data.val_loader(torch.device("cpu")).epoch(0) as batches:
            (batch,) = ((each.inputs.clone(), each.targets.clone()) for each in batches)
        assert unpacked(batch[1].numpy(), 40).tolist() == [attributes(4), attributes(5)]
        shown.append(batch)
    assert all(torch.equal(mine, written) for mine, written in zip(*shown, strict=True))


def test_grey_images_become_rgb(tmp_path: Path) -> None:
    root = celeba(tmp_path)
    Image.new("L", (18, 22), 100).save(root / "img_align_celeba" / "000005.jpg")
    pixels = FolderImages(read_set("celeba", root)["val"]).decode(0)
    assert pixels.shape == (22, 18, 3)
    assert (pixels == 100).all()


def test_the_fingerprint_follows_labels_and_images_of_the_split(tmp_path: Path) -> None:
    before = read_set("celeba", celeba(tmp_path / "a"))
    changed = celeba(tmp_path / "b")
    edit(changed, "list_attr_celeba.txt", lambda text: text.replace("000005.jpg  1", "000005.jpg -1"))
    after = read_set("celeba", changed)
    assert before["train"].fingerprint == after["train"].fingerprint
    assert before["val"].fingerprint != after["val"].fingerprint


def edit(root: Path, file: str, change: Callable[[str], str]) -> None:
    path = root / file
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before


LIST, PARTS = "list_attr_celeba.txt", "list_eval_partition.txt"


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as refused:
        read_set("celeba", root)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("file", "there", "instead", "message"),
    [
        (PARTS, "3.jpg 0", "3.jpg 4", "line 3 has the value 4, expected 0 or 1 or 2"),
        (PARTS, " 1\n", " 0\n", "no image is in part 1, which val needs"),
        (PARTS, "000008.jpg 2\n", "", "list different images: 000008.jpg differs"),
        (LIST, "Young", "", "line 2 names 39 attributes, but CelebA has 40"),
        (LIST, "8\n5_o", "9\n5_o", "line 1 announces 9 images, but 8 follow"),
        (LIST, "-1\n000002", "\n000002", "line 3 has 39 values, expected 40"),
        (LIST, "-1\n000002", "0\n000002", "line 3 has the value 0, expected -1 or 1"),
    ],
)
def test_what_is_wrong_in_a_list_is_said_in_one_line(
    tmp_path: Path, file: str, there: str, instead: str, message: str
) -> None:
    root = celeba(tmp_path)
    edit(root, file, lambda text: text.replace(there, instead))
    assert message in refusal(root)


def test_missing_files_are_said_in_one_line(tmp_path: Path) -> None:
    root = celeba(tmp_path)
    images = root / "img_align_celeba"
    (images / "9.jpg").touch()
    assert "1 images are not in list_attr_celeba.txt, 9.jpg for one" in refusal(root)
    (images / "000002.jpg").rename(images / "9.jpg")
    assert "1 of the 8 listed images are missing, 000002.jpg for one" in refusal(root)
    images.rename(root / "faces")
    assert "neither img_align_celeba/ nor img_align_celeba.zip can be read" in refusal(root)
    (root / PARTS).write_text("")
    assert f"{PARTS}: has 0 lines and lists no images" in refusal(root)
    (root / PARTS).unlink()
    assert f"{PARTS}: No such file or directory; CelebA needs {LIST} and {PARTS}" in refusal(root)


def test_lists_that_cannot_be_read_are_said_in_one_line(tmp_path: Path) -> None:
    root = celeba(tmp_path)
    (root / PARTS).write_bytes(b"000001.jpg \xff\n")
    assert f"{PARTS}: is no text file" in refusal(root)
    (root / PARTS).unlink()
    (root / PARTS).mkdir()
    assert f"{PARTS}: it is a folder, not a file" in refusal(root)


@pytest.mark.parametrize("options", [WriteOptions(), WriteOptions(source=Path("celeba"), download=True)])
def test_it_is_not_downloaded(options: WriteOptions) -> None:
    with pytest.raises(DataError, match=r"celeba: download it from mmlab.*with --source"):
        write_set("celeba", options)
