"""The .beton file (FFCV's format, version 2) without FFCV: a writer, and a reader that checks the structure."""

from __future__ import annotations

import io
import mmap
import os
import weakref
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from acdc_cli import files
from acdc_cli.errors import DataError

Mode = Literal["jpg", "raw"]
MODES: tuple[Mode, Mode] = ("jpg", "raw")
"""How an image is stored; the position is its code in the file."""

VERSION = 2
PAGE_SIZE = 8 << 20
"""FFCV's default. FFCV may cache a file page by page, so no image crosses a page's border."""
LARGEST_IMAGE = 1 << 31
"""Most bytes of one stored image: its page's size is a power of two and has 32 bits."""
LONGEST_SIDE = (1 << 16) - 1

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
FIELD = np.dtype([("type_id", "u1"), ("name", "S16"), ("arguments", "u1", (1024,))])
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
METADATA = np.dtype([("image", IMAGE), ("label", "<i8")], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
_FIELDS = ((b"image", 2), (b"label", 1))
"""Names and FFCV's type numbers: an RGBImageField and an IntField."""
_METADATA_START = HEADER.itemsize + len(_FIELDS) * FIELD.itemsize


@dataclass(frozen=True)
class Sample:
    """One image as it is stored."""

    label: int
    mode: Mode
    height: int
    width: int
    data: bytes
    """A JPEG, or the RGB pixels row by row."""


def write_beton(path: Path, samples: Iterable[Sample], capacity: int) -> int:
    """Writes the samples in their order; the same samples give the same bytes. Returns how many there were.

    capacity: room in front of the images for this many samples; there may be fewer, never more.

    The header comes last: a file whose writer was killed has version 0 and is refused by every reader.
    It holds the CRC-32 of the images, which FFCV ignores, so that files of other images differ in their first page.
    """
    metadata = np.zeros(capacity, METADATA)
    table = np.zeros(capacity, ALLOCATION)
    page_size = PAGE_SIZE
    count = crc32 = 0
    with path.open("wb") as file:
        end = _METADATA_START + metadata.nbytes
        end += -end % PAGE_SIZE
        for count, sample in enumerate(samples, 1):
            page = _page_for(len(sample.data))
            page_size = max(page_size, page)
            start = end if end % page + len(sample.data) <= page else end + -end % page
            end = start + len(sample.data)
            code = MODES.index(sample.mode)
            metadata[count - 1] = ((code, sample.width, sample.height, start), sample.label)
            table[count - 1] = (count - 1, start, len(sample.data))
            file.seek(start)
            file.write(sample.data)
            crc32 = zlib.crc32(sample.data, crc32)
        _write_index(file, metadata[:count], table[:count], end, page_size, crc32)
    return count


def _page_for(size: int) -> int:
    """Size of the page for an image of this size: a power of two, so that larger pages hold whole smaller ones."""
    if not 0 < size <= LARGEST_IMAGE:
        raise ValueError(f"an image of {size} bytes does not fit into a .beton file")
    return max(PAGE_SIZE, 1 << (size - 1).bit_length())


def _write_index(
    file: BinaryIO, metadata: NDArray[np.void], table: NDArray[np.void], end: int, page_size: int, crc32: int
) -> None:
    fields = np.zeros(len(_FIELDS), FIELD)
    for field, (name, type_id) in zip(fields, _FIELDS, strict=True):
        field["name"], field["type_id"] = name, type_id
    fields[0]["arguments"][:4] = np.frombuffer(crc32.to_bytes(4, "little"), np.uint8)
    file.seek(end)
    file.write(table.tobytes())
    file.seek(HEADER.itemsize)
    file.write(fields.tobytes())
    file.write(metadata.tobytes())
    file.seek(0)
    file.write(np.array((VERSION, len(_FIELDS), page_size, len(metadata), end), HEADER).tobytes())


class BetonFile:
    """A .beton file of images and labels, mapped into memory. Opening one of a million images takes about 0.2 s.

    Raises DataError if the structure is damaged. This detects every truncated or half-written file, but not a changed
    byte inside an image, which the manifest's checksums detect.
    """

    path: Path
    page_size: int
    samples: int
    labels: NDArray[np.int64]
    sizes: NDArray[np.int64]
    """(samples, 2): height and width in pixels."""
    modes: NDArray[np.uint8]
    """(samples,): positions in MODES."""
    starts: NDArray[np.int64]
    """(samples,): position of an image's bytes in the file."""
    lengths: NDArray[np.int64]
    """(samples,): number of an image's bytes."""
    index_end: int
    """End of the header and the labels, in bytes."""
    table_start: int
    """Start of the allocation table, in bytes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with files.open_regular(self.path) as file:
                size = os.fstat(file.fileno()).st_size
                if size < _METADATA_START:
                    self._refuse(f"it has {size} bytes, less than a header: it is empty or cut off")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._descriptor = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._descriptor)
        except OSError as cause:
            raise DataError(f"{self.path}: cannot be read: {cause.strerror}") from cause
        self._read_header(size)
        metadata = self._array(METADATA, _METADATA_START, self.samples)
        image = metadata["image"]
        self.labels = np.ascontiguousarray(metadata["label"], np.int64)
        self.sizes = np.stack([image["height"], image["width"]], axis=1).astype(np.int64)
        self.modes = np.ascontiguousarray(image["mode"])
        self._read_table(image["data_ptr"])
        self._check_images()

    def __reduce__(self) -> tuple[type[BetonFile], tuple[Path]]:
        """Another process maps the file anew."""
        return BetonFile, (self.path,)

    def __len__(self) -> int:
        return self.samples

    def mode(self, index: int) -> Mode:
        return MODES[self.modes[index]]

    @property
    def is_raw(self) -> bool:
        """Whether all images are stored as pixels."""
        return bool((self.modes == MODES.index("raw")).all())

    def image_bytes(self, index: int) -> memoryview:
        """The stored bytes, not copied."""
        start = int(self.starts[index])
        return memoryview(self._map)[start : start + int(self.lengths[index])]

    def will_need(self, indices: NDArray[np.int64]) -> None:
        """Asks the system to read these images from the disk, without waiting for them.

        Otherwise the thread that decodes an image waits for the disk, and the system reads ahead bytes that a random
        order seldom needs.
        """
        in_place = indices[np.argsort(self.starts[indices])]
        first = self.starts[in_place] // mmap.PAGESIZE
        behind = (self.starts[in_place] + self.lengths[in_place] - 1) // mmap.PAGESIZE + 1
        # images that lie side by side are one range
        begins = np.concatenate([[True], first[1:] > behind[:-1]])
        ends = np.concatenate([begins[1:], [True]])
        for start, end in (np.stack([first[begins], behind[ends]], 1) * mmap.PAGESIZE).tolist():
            # not the map's own advice, for which Python would stop its other threads
            os.posix_fadvise(self._descriptor, start, end - start, os.POSIX_FADV_WILLNEED)

    def decode(self, index: int) -> NDArray[np.uint8]:
        """(height, width, 3), RGB. Raises DataError when the image's bytes are damaged beyond decoding."""
        height, width = (int(side) for side in self.sizes[index])
        stored = self.image_bytes(index)
        if self.mode(index) == "raw":
            return np.frombuffer(stored, np.uint8).reshape(height, width, 3).copy()
        try:
            pixels = np.array(Image.open(io.BytesIO(stored), formats=("JPEG",)).convert("RGB"))
        except (OSError, SyntaxError, ValueError) as cause:
            raise DataError(self._message(f"image {index} does not decode: {cause}")) from cause
        if pixels.shape != (height, width, 3):
            size = f"{pixels.shape[1]}x{pixels.shape[0]}"
            self._refuse(f"image {index} is {size} pixels, the index says {width}x{height}")
        return pixels

    def _read_header(self, size: int) -> None:
        header = self._array(HEADER, 0, 1)[0]
        version = int(header["version"])
        self.page_size = int(header["page_size"])
        self.samples = int(header["num_samples"])
        self.table_start = int(header["alloc_table_ptr"])
        if version == 0 or (version == VERSION and self.table_start == 0):
            self._refuse("it has no header: writing it was stopped before the end")
        if version != VERSION:
            self._refuse(f"it is version {version} of the format or not a .beton file; only version {VERSION} is read")
        fields = self._array(FIELD, HEADER.itemsize, len(_FIELDS))
        stored = tuple((bytes(field["name"]), int(field["type_id"])) for field in fields)
        if int(header["num_fields"]) != len(_FIELDS) or stored != _FIELDS:
            self._refuse("its fields are not `image` (RGBImageField) and `label` (IntField)")
        if self.page_size == 0 or self.page_size & (self.page_size - 1):
            self._refuse(f"its page size, {self.page_size}, is not a power of two")
        if self.samples == 0:
            self._refuse("it holds no images")
        self.index_end = _METADATA_START + self.samples * METADATA.itemsize
        table_end = self.table_start + self.samples * ALLOCATION.itemsize
        if self.index_end > self.table_start or table_end > size:
            self._refuse(f"it should have {max(self.index_end, table_end)} bytes but has {size}: its end is missing")
        if table_end < size:
            self._refuse(f"{size - table_end} bytes follow its allocation table")

    def _read_table(self, pointers: NDArray[np.uint64]) -> None:
        """Starts and lengths of the images; a sample's entry is looked up by its pointer, as FFCV does."""
        table = self._array(ALLOCATION, self.table_start, self.samples)
        table = table[np.argsort(table["ptr"], kind="stable")]
        order = np.argsort(pointers, kind="stable")
        starts, lengths = table["ptr"], table["size"]
        if not np.array_equal(table["sample_id"], order) or not np.array_equal(starts, pointers[order]):
            self._refuse("its allocation table and its index of images contradict each other")
        inside = (starts >= self.index_end) & (starts < self.table_start)
        # so that absurd lengths cannot overflow
        inside &= (lengths > 0) & (lengths <= np.uint64(self.table_start) - np.minimum(starts, self.table_start))
        if not inside.all():
            self._refuse(f"image {order[~inside][0]} lies outside the file")
        overlapping = starts[1:] < (starts + lengths)[:-1]
        if overlapping.any():
            self._refuse(f"images {order[:-1][overlapping][0]} and {order[1:][overlapping][0]} overlap")
        crossing = starts // np.uint64(self.page_size) != (starts + lengths - np.uint64(1)) // np.uint64(self.page_size)
        if crossing.any():
            self._refuse(f"image {order[crossing][0]} crosses the border of a page")
        self.starts = pointers.astype(np.int64)
        self.lengths = np.empty(self.samples, np.int64)
        self.lengths[order] = lengths

    def _check_images(self) -> None:
        known = self.modes < len(MODES)
        raw = self.modes == MODES.index("raw")
        fits = ~raw | (self.lengths == 3 * self.sizes.prod(axis=1))
        sound = known & fits & (self.sizes > 0).all(axis=1) & (self.labels >= 0)
        if not sound.all():
            self._refuse(f"the entry of image {np.flatnonzero(~sound)[0]} is invalid")

    def _array(self, dtype: np.dtype[Any], offset: int, count: int) -> NDArray[Any]:
        return np.frombuffer(self._map, dtype, count, offset)

    def _message(self, problem: str) -> str:
        return f"{self.path}: {problem}. Write it again (`acdc data write`) or fetch another copy."

    def _refuse(self, problem: str) -> NoReturn:
        raise DataError(self._message(problem))
