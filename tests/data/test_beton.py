import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from acdc_cli.data import beton
from acdc_cli.data.beton import ALLOCATION, FIELD, HEADER, METADATA, BetonFile, Sample, write_beton
from acdc_cli.errors import DataError

INDEX_START = 24 + 2 * 1041


def _pixels(seed: int, height: int, width: int) -> np.ndarray:
    """Smooth, as photographs are: JPEG decoders agree on them to a few grey levels."""
    waves = np.random.default_rng(seed).uniform(0.02, 0.2, (3, 2))
    rows, columns = np.mgrid[:height, :width]
    channels = [128 + 100 * np.sin(rows * y + seed) * np.cos(columns * x) for y, x in waves]
    return np.stack(channels, axis=2).astype(np.uint8)


def _raw(label: int, pixels: np.ndarray) -> Sample:
    return Sample(label, "raw", pixels.shape[0], pixels.shape[1], pixels.tobytes())


def _jpeg(label: int, pixels: np.ndarray) -> Sample:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=90)
    return Sample(label, "jpg", pixels.shape[0], pixels.shape[1], encoded.getvalue())


def _mixed(count: int, height: int = 32, width: int = 40) -> list[Sample]:
    kinds = (_raw, _jpeg)
    return [kinds[index % 2](index % 3, _pixels(index, height, width)) for index in range(count)]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "set.beton"
    write_beton(path, _mixed(10), capacity=10)
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "set.beton"
    wide, tall = _pixels(1, 3, 5), _pixels(2, 40, 30)
    jpeg = _jpeg(9, tall)
    assert write_beton(path, iter([_raw(4, wide), jpeg]), capacity=3) == 2

    file = BetonFile(path)

    assert (file.samples, len(file)) == (2, 2)
    assert file.labels.tolist() == [4, 9]
    assert file.sizes.tolist() == [[3, 5], [40, 30]]
    assert [file.mode(0), file.mode(1)] == ["raw", "jpg"]
    assert bytes(file.image_bytes(1)) == jpeg.data
    np.testing.assert_array_equal(file.decode(0), wide)
    np.testing.assert_array_equal(file.decode(1), np.asarray(Image.open(io.BytesIO(jpeg.data))))


def test_a_grey_jpeg_decodes_to_three_equal_channels(tmp_path: Path) -> None:
    grey = _pixels(0, 16, 16)[:, :, 0]
    encoded = io.BytesIO()
    Image.fromarray(grey).save(encoded, "JPEG")
    write_beton(tmp_path / "set.beton", [Sample(0, "jpg", 16, 16, encoded.getvalue())], capacity=1)
    decoded = BetonFile(tmp_path / "set.beton").decode(0)
    assert decoded.shape == (16, 16, 3)
    assert (decoded == decoded[:, :, :1]).all()


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_beton(tmp_path / name, _mixed(10), capacity=10)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_another_process_opens_the_file_anew(written: Path) -> None:
    copy = pickle.loads(pickle.dumps(BetonFile(written)))
    np.testing.assert_array_equal(copy.decode(3), BetonFile(written).decode(3))


@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=30))
def test_no_image_crosses_a_page_whatever_its_size(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    path = tmp_path_factory.mktemp("pages") / "set.beton"
    samples = [Sample(0, "jpg", 1, 1, bytes([index]) * size) for index, size in enumerate(sizes)]
    with mock.patch.object(beton, "PAGE_SIZE", 64):
        write_beton(path, samples, capacity=len(samples))

    file = BetonFile(path)

    # the smallest power of two that holds the largest image
    assert file.page_size == max(64, 2 ** int(np.ceil(np.log2(max(sizes)))))
    for index, sample in enumerate(samples):
        first, last = int(file.starts[index]), int(file.starts[index]) + sizes[index] - 1
        assert first // file.page_size == last // file.page_size
        assert bytes(file.image_bytes(index)) == sample.data


def test_an_image_without_bytes_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 bytes"):
        write_beton(tmp_path / "set.beton", [Sample(0, "jpg", 1, 1, b"")], capacity=1)


def _field(path: Path, dtype: np.dtype, offset: int, name: str, value: object) -> None:
    """Changes one entry of a structure in the file."""
    with path.open("r+b") as file:
        file.seek(offset)
        entry = np.frombuffer(file.read(dtype.itemsize), dtype).copy()
        entry[name] = value
        file.seek(offset)
        file.write(entry.tobytes())


def _truncate(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def _table(path: Path) -> int:
    return BetonFile(path).table_start


def _zero_table(path: Path) -> None:
    start = _table(path)
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(10 * ALLOCATION.itemsize))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: _truncate(path, 0), "empty or cut off"),
    "header only": (lambda path: _truncate(path, 1000), "empty or cut off"),
    "half": (lambda path: _truncate(path, path.stat().st_size // 2), "its end is missing"),
    "last byte missing": (lambda path: _truncate(path, path.stat().st_size - 1), "its end is missing"),
    "last KB missing": (lambda path: _truncate(path, path.stat().st_size - 1024), "its end is missing"),
    "something appended": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "1 bytes follow"),
    "killed writer": (lambda path: _field(path, HEADER, 0, "version", 0), "stopped before the end"),
    "killed FFCV writer": (lambda path: _field(path, HEADER, 0, "alloc_table_ptr", 0), "stopped before the end"),
    "other version": (lambda path: _field(path, HEADER, 0, "version", 3), "only version 2"),
    "other fields": (lambda path: _field(path, FIELD, HEADER.itemsize, "name", b"covariate"), "fields are not"),
    "no samples": (lambda path: _field(path, HEADER, 0, "num_samples", 0), "no images"),
    "absurd count": (lambda path: _field(path, HEADER, 0, "num_samples", 2**62), "its end is missing"),
    "odd page": (lambda path: _field(path, HEADER, 0, "page_size", 12), "not a power of two"),
    "page smaller than an image": (
        lambda path: _field(path, HEADER, 0, "page_size", 2048),
        "image 0 crosses the border",
    ),
    "swapped sample": (lambda path: _field(path, ALLOCATION, _table(path), "sample_id", 5), "contradict"),
    "zeroed table": (_zero_table, "contradict"),
    "moved pointer": (
        lambda path: _field(path, METADATA, INDEX_START, "image", (1, 40, 32, 9_000_000)),
        "contradict",
    ),
    "absurd length": (lambda path: _field(path, ALLOCATION, _table(path), "size", 2**64 - 1), "image 0 lies outside"),
    "overlap": (lambda path: _field(path, ALLOCATION, _table(path), "size", 4000), "images 0 and 1 overlap"),
    "raw of another size": (
        lambda path: _field(path, ALLOCATION, _table(path), "size", 3839),
        "image 0 is invalid",
    ),
    "unknown mode": (
        lambda path: _field(path, METADATA, INDEX_START, "image", (2, 40, 32, 8 << 20)),
        "image 0 is invalid",
    ),
    "negative label": (lambda path: _field(path, METADATA, INDEX_START + 24, "label", -1), "image 1 is invalid"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_structure_is_refused_with_its_cause_and_a_way_out(written: Path, damage: str) -> None:
    inflict, cause = DAMAGES[damage]
    inflict(written)
    with pytest.raises(DataError, match=cause) as refusal:
        BetonFile(written)
    assert str(written) in str(refusal.value)
    assert "acdc data write" in str(refusal.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        BetonFile(tmp_path / "none.beton")
    with pytest.raises(DataError, match="it is a folder"):
        BetonFile(tmp_path)


def test_a_jpeg_damaged_beyond_decoding_names_file_and_image(written: Path) -> None:
    start = int(BetonFile(written).starts[1])
    with written.open("r+b") as file:
        file.seek(start)
        file.write(bytes(100))
    with pytest.raises(DataError, match="image 1 does not decode"):
        BetonFile(written).decode(1)


def test_a_jpeg_of_another_size_than_the_index_says_is_refused(tmp_path: Path) -> None:
    sample = _jpeg(0, _pixels(0, 32, 40))
    write_beton(tmp_path / "set.beton", [Sample(0, "jpg", 40, 32, sample.data)], capacity=1)
    with pytest.raises(DataError, match="40x32 pixels, the index says 32x40"):
        BetonFile(tmp_path / "set.beton").decode(0)


@pytest.mark.slow
def test_the_layout_is_ffcvs() -> None:
    types = pytest.importorskip("ffcv.types")
    fields = pytest.importorskip("ffcv.fields")
    theirs = types.get_metadata_type([fields.RGBImageField(), fields.IntField()])
    assert [HEADER.itemsize, FIELD.itemsize, ALLOCATION.itemsize, METADATA.itemsize] == [
        types.HeaderType.itemsize,
        types.FieldDescType.itemsize,
        types.ALLOC_TABLE_TYPE.itemsize,
        theirs.itemsize,
    ]
    assert [offset for _, offset in METADATA.fields.values()] == [offset for _, offset in theirs.fields.values()]
    assert beton.VERSION == types.CURRENT_VERSION


@pytest.mark.slow
def test_ffcv_reads_the_same_pixels_and_labels_from_our_file(tmp_path: Path) -> None:
    pytest.importorskip("ffcv")
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    path = tmp_path / "set.beton"
    # raw ones larger than the usual page, and one grey
    samples = _mixed(12, height=1700, width=1700)
    grey = io.BytesIO()
    Image.fromarray(_pixels(5, 1700, 1700)).convert("L").save(grey, "JPEG")
    samples.insert(11, Sample(7, "jpg", 1700, 1700, grey.getvalue()))
    write_beton(path, samples, capacity=20)
    ours = BetonFile(path)
    assert ours.page_size > beton.PAGE_SIZE

    pipelines = {"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]}
    loader = Loader(str(path), 4, num_workers=1, order=OrderOption.SEQUENTIAL, pipelines=pipelines, drop_last=False)
    seen = 0
    for images, labels in loader:
        for image, label in zip(images, labels.ravel(), strict=True):
            assert label == ours.labels[seen]
            difference = np.abs(image.astype(int) - ours.decode(seen))
            # FFCV takes the faster, less exact inverse cosine transform; raw pixels must be equal
            assert difference.max() <= (0 if ours.mode(seen) == "raw" else 8)
            assert difference.mean() < 2
            seen += 1
    assert seen == 13


@pytest.mark.slow
def test_we_read_what_ffcvs_own_writer_wrote(tmp_path: Path) -> None:
    """In a process of its own: FFCV's writer forks, and hangs for ever when it fails."""
    pytest.importorskip("ffcv")
    program = """
import sys
import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter

class Set:
    def __len__(self):
        return 40
    def __getitem__(self, index):
        return np.full((20 + index, 30, 3), index, np.uint8), index % 7

fields = {"image": RGBImageField(write_mode="proportion", compress_probability=0.5), "label": IntField()}
DatasetWriter(sys.argv[1], fields, num_workers=2).from_indexed_dataset(Set(), chunksize=3)
"""
    path = tmp_path / "theirs.beton"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=100, capture_output=True)

    file = BetonFile(path)

    assert file.labels.tolist() == [index % 7 for index in range(40)]
    assert file.sizes.tolist() == [[20 + index, 30] for index in range(40)]
    assert {file.mode(index) for index in range(40)} == {"jpg", "raw"}
    for index in range(40):
        assert np.abs(file.decode(index).astype(int) - index).max() <= 1


def test_pages_of_images_that_are_needed_are_asked_for_and_neighbours_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of 3,072 bytes from the first page of 8 MiB on; the system's pages have 4,096 bytes."""
    write_beton(tmp_path / "train.beton", (_raw(0, _pixels(seed, 32, 32)) for seed in range(50)), 50)
    file, asked = BetonFile(tmp_path / "train.beton"), []
    monkeypatch.setattr("mmap.PAGESIZE", 4096)
    monkeypatch.setattr(
        "os.posix_fadvise", lambda descriptor, start, length, advice: asked.append((start - beton.PAGE_SIZE, length))
    )
    # image 40 fills bytes 122,880 to 125,951, all of page 30; images 0 and 1 lie in pages 0 and 1, 8 and 9 in 6 and 7
    file.will_need(np.array([40, 1, 9, 0, 8]))
    assert asked == [(0, 2 * 4096), (6 * 4096, 2 * 4096), (30 * 4096, 4096)]
