from __future__ import annotations

import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from command import run_acdc
from PIL import Image

from acdc_cli.data.describe import SetFacts
from acdc_cli.data.inventory import WriteOptions, describe_folder, write_set
from acdc_cli.data.proposal import proposed_keys, remarks, rows
from acdc_cli.data.write_beton import Settings, Source, write
from acdc_cli.errors import DataError


def plain(level: int, side: int = 8, **options: object) -> bytes:
    """A PNG file of one grey level, RGB."""
    return encoded(Image.new("RGB", (side, side), (level, level, level)), "PNG", **options)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def folder(root: Path, images: dict[str, bytes]) -> Path:
    for name, data in images.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def described(root: Path, limit: int | None = None) -> SetFacts:
    return describe_folder(root, limit, workers=0)


def test_mean_and_deviation_are_those_of_all_pixels(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (6, 8, 8, 3), np.uint8)
    images = {
        f"train/{'ab'[index % 2]}/{index}.png": encoded(Image.fromarray(each), "PNG")
        for index, each in enumerate(pixels)
    }
    train = described(folder(tmp_path, images)).splits["train"]
    assert train.mean == pytest.approx(pixels.reshape(-1, 3).mean(0) / 255, abs=1e-4)
    assert train.std == pytest.approx(pixels.reshape(-1, 3).std(0) / 255, abs=1e-4)
    assert (train.images, train.classes, train.one_size, train.width) == (6, {"a": 3, "b": 3}, True, (8, 8, 8))


def test_unusual_files_are_counted_by_kind_and_named(tmp_path: Path) -> None:
    jpeg = encoded(Image.new("RGB", (8, 8)), "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    images = {
        "rgb.jpg": jpeg,
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "text.png": b"not an image",
        "cmyk.jpg": encoded(Image.new("CMYK", (8, 8)), "JPEG"),
        "grey.png": encoded(Image.new("L", (8, 8), 3), "PNG"),
        "deep.png": encoded(Image.new("I;16", (8, 8), 3), "PNG"),
        "alpha.png": encoded(Image.new("RGBA", (8, 8)), "PNG"),
        "turned.jpg": encoded(Image.new("RGB", (4, 8)), "JPEG", exif=exif),
    }
    facts = described(folder(tmp_path, {f"train/a/{name}": data for name, data in images.items()}))
    train = facts.splits["train"]
    assert train.kinds == {"unreadable": 3, "16 bits": 1, "CMYK": 1, "grey": 1, "palette or alpha": 1, "rotated": 1}
    assert train.examples["rotated"] == ["train/a/turned.jpg"]
    assert train.width == (4, 8, 8)
    said = list(remarks(facts))
    assert said[0].startswith("train: 3 images cannot be read")
    assert any(each.startswith("train: 1 images are CMYK") and "cmyk.jpg" in each for each in said)
    shown = " ".join(run_acdc("data", "describe", tmp_path, "--workers", "0").stderr.split())
    assert all(f"warning: {' '.join(each.split())}" in shown for each in said)


def test_a_png_of_16_bits_a_channel_is_named_although_pillow_reads_it_as_8(tmp_path: Path) -> None:
    data = bytearray(plain(3))
    # the header's bits of a channel, and its checksum
    data[24] = 16
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    facts = described(folder(tmp_path, {"train/a/1.png": bytes(data)}))
    assert facts.splits["train"].kinds["16 bits"] == 1


def test_copies_within_and_across_splits_are_found_by_content(tmp_path: Path) -> None:
    images = {
        "train/a/1.png": plain(1),
        "train/a/2.png": plain(2),
        "train/a/copy.png": plain(1),
        "train/b/1.png": plain(1),
        "val/a/x.png": plain(2),
        "val/b/y.png": plain(9),
    }
    facts = described(folder(tmp_path, images))
    assert (facts.splits["train"].duplicates, facts.splits["train"].two_classes) == (2, 1)
    assert (facts.shared, facts.shared_examples) == (1, [("val/a/x.png", "train/a/2.png")])
    assert (facts.splits["val"].duplicates, facts.splits["val"].two_classes) == (0, 0)
    assert list(remarks(facts)) == [
        "train: 2 images are copies of others of the split, 1 of them in another class",
        "1 validation images are training images, too, so accuracy is overestimated: val/a/x.png = train/a/2.png",
    ]


def test_files_that_cannot_be_read_are_no_copies_of_each_other(tmp_path: Path) -> None:
    folder(tmp_path, {"train/a/empty.png": b"", "train/a/good.png": plain(1)})
    for name in ("x", "y"):
        (tmp_path / f"train/a/{name}.png").symlink_to(tmp_path / "nowhere")
    train = described(tmp_path).splits["train"]
    assert (train.kinds, train.duplicates) == ({"unreadable": 3}, 0)
    assert "train/a/x.png: No such file or directory" in train.examples["unreadable"]


def test_of_many_unusual_files_ten_are_named(tmp_path: Path) -> None:
    facts = described(folder(tmp_path, {f"train/a/{number:02}.png": b"no image" for number in range(12)}))
    assert facts.splits["train"].kinds == {"unreadable": 12}
    assert len(facts.splits["train"].examples["unreadable"]) == 10
    assert {label: cells for label, *cells in rows(facts)}["width"] == ["-"]


def test_classes_without_an_image_are_named(tmp_path: Path) -> None:
    source = Source("tiny", "val", np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 2]), ("a", "b", "c"), "")
    write(source, tmp_path / "val.beton", Settings(), workers=0)
    assert "val: 1 classes have no image: b" in remarks(described(tmp_path))


def test_a_written_set_is_described_like_its_images(tmp_path: Path) -> None:
    images = {f"{split}/a/{level}.png": plain(level) for split in ("train", "val") for level in (0, 255)}
    write_set(
        "folder",
        WriteOptions(source=folder(tmp_path / "images", images), out=tmp_path / "set", workers=0, raw_share=1.0),
    )
    facts = described(tmp_path / "set")
    assert (facts.splits["train"].mean, facts.splits["train"].std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert facts.splits["val"].images == 2


@pytest.mark.slow
def test_workers_see_the_same(tmp_path: Path) -> None:
    images = {f"train/a/{level}.png": plain(level) for level in range(70)}
    folder(tmp_path, images)
    assert describe_folder(tmp_path, workers=1) == describe_folder(tmp_path, workers=0)


@pytest.mark.parametrize(
    ("side", "resolution", "resize"), [(28, 28, 28), (64, 64, 64), (100, 96, 109), (500, 224, 256)]
)
def test_the_proposed_sizes_follow_the_images(tmp_path: Path, side: int, resolution: int, resize: int) -> None:
    proposed = proposed_keys(described(folder(tmp_path, {"train/a/1.png": plain(0, side)})))
    assert (proposed["resolution"], proposed["val_crop"], proposed["val_resize"]) == (resolution, resolution, resize)
    assert proposed["augment"] == ("pad_crop" if side <= 64 else "random_resized_crop")
    assert proposed["std"] == [0.001] * 3


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    folder(
        tmp_path,
        {"train/a/1.png": plain(0), "train/b/2.png": plain(255), "val/a/3.png": plain(7), "val/b/4.png": plain(8)},
    )
    shown = run_acdc("data", "describe", tmp_path, "--images", "1")
    assert "looked at          1" in shown.stdout
    facts = json.loads(run_acdc("data", "describe", tmp_path, "--json").stdout)
    assert facts["proposed"]["mean"] == [0.5, 0.5, 0.5]
    wrong = run_acdc("data", "describe", tmp_path / "none")
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("error: ")


def test_a_set_without_a_readable_image_has_no_proposal(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of 1 images can be read"):
        proposed_keys(described(folder(tmp_path, {"train/a/1.png": b"nothing"})))
