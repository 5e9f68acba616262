import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from acdc_cli.data import beton, manifest
from acdc_cli.data.beton import HEADER, METADATA, BetonFile, Sample, write_beton
from acdc_cli.data.manifest import PAGE, BadImage, ContentHash, check_full, check_quick
from acdc_cli.data.write_beton import Settings, Source, write
from acdc_cli.errors import DataError

SIDE = 600
SAMPLES = 30
INDEX_START = 24 + 2 * 1041


@pytest.fixture(scope="module")
def _original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty raw images of 1.08 MB, seven in each 8 MiB page from page 1 on; the last page holds 29 and the table."""
    path = tmp_path_factory.mktemp("set") / "train.beton"
    images = np.random.default_rng(0).integers(0, 256, (SAMPLES, SIDE, SIDE, 3), dtype=np.uint8)
    labels = np.arange(SAMPLES) % 3
    source = Source("demo", "train", images, labels, ("a", "b", "c"), "fingerprint")
    write(source, path, Settings(raw_share=1.0), workers=0)
    return path


@pytest.fixture
def written(_original: Path, tmp_path: Path) -> Path:
    for name in ("train.beton", "train.beton.json"):
        shutil.copy(_original.with_name(name), tmp_path / name)
    return tmp_path / "train.beton"


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _edit(path: Path, **values: object) -> None:
    beside = path.with_name("train.beton.json")
    beside.write_text(json.dumps(json.loads(beside.read_text()) | values))


def test_an_untouched_file_passes_both_checks(written: Path) -> None:
    assert check_quick(written) == check_full(written) == manifest.read(written)


def test_progress_ends_at_the_bytes_of_the_file_and_of_its_images(written: Path) -> None:
    calls: list[tuple[int, int]] = []
    check_full(written, lambda done, total: calls.append((done, total)))
    total = written.stat().st_size + SAMPLES * SIDE * SIDE * 3
    assert calls[-1] == (total, total)
    assert calls == sorted(calls)


def test_the_manifest_says_what_was_written(written: Path) -> None:
    described = manifest.read(written)
    assert (described.name, described.split, described.samples, described.classes) == ("demo", "train", 30, 3)
    assert described.class_names == ("a", "b", "c")
    assert described.label_histogram == (10, 10, 10)
    assert described.settings == {
        "quality": 90,
        "max_side": None,
        "raw_share": 1.0,
        "original": False,
        "reencode": False,
    }
    assert described.bytes == written.stat().st_size
    assert len(described.page_crc32) == 6
    assert (described.reencoded, described.bad) == (0, ())


def test_a_manifest_is_read_as_it_was_written(written: Path) -> None:
    changed = dataclasses.replace(manifest.read(written), bad=(BadImage("a/ü.jpg", "empty"),), reencoded=2)
    manifest.write(written, changed)
    assert manifest.read(written) == changed
    assert sorted(path.name for path in written.parent.iterdir()) == ["train.beton", "train.beton.json"]


def test_the_content_hash_does_not_depend_on_the_layout(tmp_path: Path) -> None:
    samples = [Sample(index, "jpg", 1, 2, bytes(range(50 + index))) for index in range(9)]
    hashes = []
    for page_size in (128, 4096):
        with mock.patch.object(beton, "PAGE_SIZE", page_size):
            write_beton(tmp_path / "set.beton", samples, capacity=9)
        hashes.append(manifest.checksums(BetonFile(tmp_path / "set.beton")))
    assert hashes[0][0] != hashes[1][0]
    assert hashes[0][1] == hashes[1][1]


def test_the_content_hash_depends_on_everything_a_loader_sees() -> None:
    def content(*samples: tuple[int, str, int, int, bytes]) -> str:
        digest = ContentHash()
        for sample in samples:
            digest.add(*sample)
        return digest.hexdigest()

    base = (1, "jpg", 4, 3, b"ab")
    other = (1, "jpg", 4, 3, b"cd")
    variants = [
        content(base, other),
        content(other, base),
        content(base),
        content((2, "jpg", 4, 3, b"ab"), other),
        content((1, "raw", 4, 3, b"ab"), other),
        content((1, "jpg", 3, 4, b"ab"), other),
        content((1, "jpg", 4, 3, b"abc"), (1, "jpg", 4, 3, b"d")),
    ]
    assert len(set(variants)) == len(variants)


def test_flipped_bytes_are_found_and_the_images_named(written: Path) -> None:
    file = BetonFile(written)
    start = int(file.starts[10])
    flipped = bytes(byte ^ 0xFF for byte in file.image_bytes(10)[:2000])
    del file
    _overwrite(written, start, flipped)
    check_quick(written)
    with pytest.raises(DataError, match=r"1 of its 8 MiB pages.*page 2 \(7 images between 7 and 13\)") as refusal:
        check_full(written)
    assert "acdc data write --force" in str(refusal.value)


def test_one_flipped_bit_is_found(written: Path) -> None:
    start = int(BetonFile(written).starts[29]) + 77
    byte = written.read_bytes()[start]
    _overwrite(written, start, bytes([byte ^ 1]))
    with pytest.raises(DataError, match=r"page 5 \(2 images between 28 and 29, allocation table\)"):
        check_full(written)


def test_400_zeroed_kilobytes_over_a_page_border_are_found(written: Path) -> None:
    _overwrite(written, 3 * PAGE - 1_000_000, bytes(400_000))
    _overwrite(written, 4 * PAGE - 1_000_000, bytes(400_000))
    with pytest.raises(DataError, match=r"2 of its 8 MiB pages.*page 2 .*; page 3 \("):
        check_full(written)


@pytest.mark.parametrize("check", [check_quick, check_full])
@pytest.mark.parametrize("size", [0, 1000, "half", "last KB missing"])
def test_a_cut_off_file_is_found_at_every_opening(written: Path, check: object, size: object) -> None:
    whole = written.stat().st_size
    left = {"half": whole // 2, "last KB missing": whole - 1024}.get(size, size)
    with written.open("r+b") as file:
        file.truncate(left)
    with pytest.raises(DataError, match=f"has {left} bytes, its manifest says {whole}"):
        check(written)


def test_a_changed_label_is_found_at_every_opening(written: Path) -> None:
    offset = INDEX_START + 5 * METADATA.itemsize + 16
    assert BetonFile(written).labels[5] == 2
    _overwrite(written, offset, b"\1")
    with pytest.raises(DataError, match=r"page 0 \(header and labels\)"):
        check_quick(written)


def test_a_changed_length_is_found_at_every_opening(tmp_path: Path) -> None:
    path = tmp_path / "train.beton"
    images = np.random.default_rng(0).integers(0, 256, (12, SIDE, SIDE, 3), dtype=np.uint8)
    write(Source("demo", "train", images, np.zeros(12, np.int64), ("a",), ""), path, Settings(quality=100), workers=0)
    file = BetonFile(path)
    # its own page: neither the header nor a damaged structure gives the change away
    assert file.table_start > PAGE * 2
    _overwrite(path, file.table_start + 16, int(file.lengths[0] - 1).to_bytes(8, "little"))
    assert BetonFile(path).lengths[0] == file.lengths[0] - 1
    with pytest.raises(DataError, match="allocation table"):
        check_quick(path)


def test_a_changed_header_is_found_at_every_opening(written: Path) -> None:
    _overwrite(written, 0, bytes(HEADER.itemsize))
    with pytest.raises(DataError, match="stopped before the end"):
        check_quick(written)


def test_a_file_gone_from_beside_its_manifest_is_found(written: Path) -> None:
    written.unlink()
    with pytest.raises(DataError, match="No such file"):
        check_quick(written)


def test_a_file_without_manifest_is_refused(written: Path) -> None:
    written.with_name("train.beton.json").unlink()
    with pytest.raises(DataError, match="has no manifest"):
        check_quick(written)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1}', '{"version": 2}', "\0"])
def test_a_damaged_manifest_is_refused(written: Path, text: str) -> None:
    written.with_name("train.beton.json").write_text(text)
    with pytest.raises(DataError, match=r"train\.beton\.json.*[Ww]rite the data set again"):
        check_quick(written)


def test_a_manifest_whose_names_are_numbers_is_refused(written: Path) -> None:
    _edit(written, class_names=["a", "b", 3])
    with pytest.raises(DataError, match=r"json: class_names is not a value that .*Write the data set again"):
        manifest.read(written)


def test_a_manifest_of_other_images_is_refused(written: Path) -> None:
    _edit(written, content_hash="0" * 64)
    with pytest.raises(DataError, match="content hash"):
        check_full(written)


def test_a_manifest_of_other_labels_is_refused(written: Path) -> None:
    _edit(written, label_histogram=[11, 10, 9])
    with pytest.raises(DataError, match="its labels are not those"):
        check_quick(written)


def test_a_manifest_with_missing_checksums_is_refused(written: Path) -> None:
    _edit(written, page_crc32=[])
    with pytest.raises(DataError, match="checksums are missing"):
        check_quick(written)


@pytest.mark.parametrize("check", [check_quick, check_full])
@pytest.mark.parametrize("label", [3, 3_000_000_000, 1 << 62])
def test_a_class_beyond_the_sets_is_refused_even_with_a_manifest_made_for_it(
    tmp_path: Path, check: Any, label: int
) -> None:
    path = _with_last_label(tmp_path, label)
    _edit(path, label_histogram=[1, 1, 0, 1], classes=4)
    with pytest.raises(DataError, match=r"but 3 names and 4 counts"):
        check(path)
    _edit(path, label_histogram=[1, 1, 0], classes=3)
    with pytest.raises(DataError, match=f"image 2 has class {label}, but the set has 3 classes"):
        check(path)


def test_a_manifest_that_claims_more_classes_than_it_names_is_refused(written: Path) -> None:
    _edit(written, classes=10**12)
    with pytest.raises(DataError, match="1000000000000 classes, but 3 names and 3 counts"):
        check_quick(written)


def _with_last_label(folder: Path, label: int) -> Path:
    """A file of three images, the last of this label, with checksums that fit."""
    path = folder / "train.beton"
    images = np.zeros((3, 4, 4, 3), np.uint8)
    source = Source("demo", "train", images, np.array([0, 1, 2]), ("a", "b", "c"), "fingerprint")
    made = write(source, path, Settings(raw_share=1.0), workers=0)
    write_beton(path, [Sample(each, "raw", 4, 4, bytes(48)) for each in (0, 1, label)], capacity=3)
    pages, content = manifest.checksums(BetonFile(path))
    manifest.write(path, dataclasses.replace(made, page_crc32=pages, content_hash=content))
    return path


def test_many_damaged_pages_are_counted_and_the_first_named(written: Path) -> None:
    with mock.patch.object(manifest, "_PAGES_NAMED", 1):
        for page in range(1, 5):
            _overwrite(written, page * PAGE + 5, bytes(40))
        with pytest.raises(DataError, match=r"4 of its 8 MiB pages.*page 1 \(7 images between 0 and 6\); and 3 more"):
            check_full(written)


def test_the_manifest_of_other_images_is_noticed_at_once(tmp_path: Path) -> None:
    for name, value in (("one", 1), ("other", 2)):
        images = np.zeros((9, SIDE, SIDE, 3), np.uint8)
        images[3] = value
        source = Source("demo", "train", images, np.arange(9) % 3, ("a", "b", "c"), "fingerprint")
        (tmp_path / name).mkdir()
        write(source, tmp_path / name / "train.beton", Settings(raw_share=1.0), workers=0)
    shutil.copy(tmp_path / "one" / "train.beton.json", tmp_path / "other" / "train.beton.json")
    with pytest.raises(DataError, match=r"page 0 \(header and labels\).*--force"):
        check_quick(tmp_path / "other" / "train.beton")
