from pathlib import Path

import pytest
from PIL import Image

from acdc_cli.data.archive import read_bytes
from acdc_cli.data.image_folder import folder_source
from acdc_cli.errors import DataError


def _images(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    return root


def test_a_folder_has_the_order_and_labels_of_torchvisions_image_folder(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    root = _images(
        tmp_path,
        *("train/zebra/b.png", "train/zebra/a.JPG", "train/zebra/10.jpeg", "train/zebra/9.jpeg"),
        *("train/Ant/x.bmp", "train/bee/deep/er/1.png", "train/bee/deep/0.png", "train/bee/z.png"),
        *(f"train/Ant/{folder}/1.png" for folder in "qgxbzmaf"),
    )
    (root / "train/zebra/notes.txt").write_text("not an image")

    source = folder_source("folder", "train", root)

    theirs = ImageFolder(str(root / "train"))
    assert [(str(root / path), label) for path, label in zip(source.images, source.labels, strict=True)] == theirs.imgs
    assert list(source.class_names) == theirs.classes == ["Ant", "bee", "zebra"]
    assert source.root == root


def test_the_fingerprint_of_a_folder_follows_names_and_sizes_but_not_where_it_lies(tmp_path: Path) -> None:
    names = ("train/a/1.png", "train/b/2.png")
    first, second = (folder_source("folder", "train", _images(tmp_path / place, *names)) for place in ("x", "y"))
    assert first.fingerprint == second.fingerprint
    (tmp_path / "x/train/a/1.png").write_bytes(b"longer or shorter")
    assert folder_source("folder", "train", tmp_path / "x").fingerprint != first.fingerprint
    (tmp_path / "y/train/a/1.png").rename(tmp_path / "y/train/a/3.png")
    assert folder_source("folder", "train", tmp_path / "y").fingerprint != first.fingerprint


def test_a_broken_link_is_left_for_writing_to_report(tmp_path: Path) -> None:
    root = _images(tmp_path, "train/a/1.png")
    (root / "train/a/2.png").symlink_to(root / "nowhere")
    assert folder_source("folder", "train", root).images == ["train/a/1.png", "train/a/2.png"]


@pytest.mark.parametrize(
    ("link", "target", "same"),
    [
        ("train/a/loop", "train/a", "train/a"),
        ("train/a/deep/loop", "train", "train"),
        ("train/a/loop", "/", "/"),
        ("train/loop", "train", "train"),
        ("train/b/other", "train/a", "train/a"),
        ("train/b/twice", "train/b/deep", "train/b/deep"),
        ("train/b/zebra", "elsewhere/b/deep", "train/b/deep"),
    ],
)
def test_a_folder_that_links_make_part_of_a_split_twice_is_an_error(
    tmp_path: Path, link: str, target: str, same: str
) -> None:
    root = _images(tmp_path, "train/a/deep/1.png", "train/b/deep/2.png")
    (root / "elsewhere").symlink_to(root / "train")
    (root / link).symlink_to(root / target)
    with pytest.raises(DataError, match=f"a link makes it the same folder as {root / same}, "):
        folder_source("folder", "train", root)


def test_class_folders_may_be_links_and_splits_may_share_them(tmp_path: Path) -> None:
    root = _images(tmp_path, "images/a/1.png", "images/b/2.png")
    for split in ("train", "val"):
        (root / split).mkdir()
        for name in "ab":
            (root / split / name).symlink_to(root / "images" / name)
        assert folder_source("folder", split, root).images == [f"{split}/a/1.png", f"{split}/b/2.png"]


def test_only_an_archive_is_a_file_that_holds_files(tmp_path: Path) -> None:
    (tmp_path / "images.tar").touch()
    with pytest.raises(NotADirectoryError):
        read_bytes(tmp_path / "images.tar" / "1.png")
