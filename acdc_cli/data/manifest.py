"""The manifest of a .beton file: settings, classes and the checksums that reveal damage."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import PlainValidator, PositiveInt, TypeAdapter, ValidationError

from acdc_cli import files, reading
from acdc_cli.data.beton import MODES, BetonFile, Mode
from acdc_cli.data.labels import Kind, Labels
from acdc_cli.errors import DataError

VERSION = 1
PAGE = 8 << 20
"""Bytes that share one checksum."""
Progress = Callable[[int, int], object]
"""Called with the bytes done and the bytes in total."""
_PAGES_NAMED = 10
_SAMPLE = struct.Struct("<QqBHHQ")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("not text")
    return value


Name = Annotated[str, PlainValidator(_text)]
"""A file's name, whose bytes may be no UTF-8: pydantic's own check refuses those."""


@dataclass(frozen=True)
class BadImage:
    """A source that could not be read."""

    path: Name
    """Relative to the source folder."""
    reason: Name


@dataclass(frozen=True)
class Manifest:
    version: int
    name: str
    """The data set's name in `acdc data list`."""
    split: str
    samples: PositiveInt
    classes: PositiveInt
    class_names: tuple[Name, ...]
    settings: dict[str, Any]
    """How images were stored: `acdc_cli.data.write_beton.Settings`."""
    source: str
    """Fingerprint of the source of the images."""
    bytes: int
    """Size of the .beton file."""
    page_crc32: tuple[int, ...]
    """CRC-32 of each 8 MiB of the file."""
    content_hash: str
    """SHA-256 over index, label, kind, size and bytes of each image, independent of the file's layout."""
    label_histogram: tuple[int, ...]
    """Images of each class, or with each label."""
    reencoded: int
    """Images stored as JPEG with other bytes than their source's."""
    bad: tuple[BadImage, ...]
    """Sources that were left out because they are unreadable."""
    created: str
    acdc_version: str
    targets: Kind = "class"
    """`bits`: the classes are labels, of which an image may have several. Older manifests lack this key."""

    @property
    def labels(self) -> Labels:
        return Labels(self.class_names, self.targets)

    def summary(self) -> str:
        notes = [f"{self.samples:,} images", f"{self.classes:,} {self.labels.word}", f"{self.bytes / 1e6:,.1f} MB"]
        if self.reencoded:
            notes.append(f"{self.reencoded:,} encoded anew as JPEG")
        if self.bad:
            notes.append(f"{len(self.bad):,} unreadable left out")
        return ", ".join(notes)


class ContentHash:
    """A hash of images in their order, whatever file they lie in."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._count = 0

    def add(self, label: int, mode: Mode, height: int, width: int, data: bytes | memoryview) -> None:
        self._hash.update(_SAMPLE.pack(self._count, label, MODES.index(mode), height, width, len(data)))
        self._hash.update(data)
        self._count += 1

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def checksums(file: BetonFile, progress: Progress | None = None) -> tuple[tuple[int, ...], str]:
    """CRC-32 of each page of the file, and its content hash."""
    total = file.path.stat().st_size + int(file.lengths.sum())
    done = 0

    def advance(amount: int) -> None:
        nonlocal done
        done += amount
        if progress:
            progress(done, total)

    return _page_crc32(file.path, advance), _content_hash(file, advance)


def _page_crc32(path: Path, advance: Callable[[int], None]) -> tuple[int, ...]:
    pages = []
    with path.open("rb") as file:
        while page := file.read(PAGE):
            pages.append(zlib.crc32(page))
            advance(len(page))
    return tuple(pages)


def _content_hash(file: BetonFile, advance: Callable[[int], None]) -> str:
    content = ContentHash()
    for index in range(file.samples):
        height, width = file.sizes[index]
        data = file.image_bytes(index)
        content.add(int(file.labels[index]), file.mode(index), height, width, data)
        advance(len(data))
    return content.hexdigest()


def path_of(beton: Path) -> Path:
    """`train.beton` has its manifest in `train.beton.json`."""
    return beton.with_name(beton.name + ".json")


def write(beton: Path, manifest: Manifest) -> None:
    """Puts the manifest beside its file, whole or not at all."""
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in asdict(manifest).items())
    files.write_text(path_of(beton), "{\n" + ",\n".join(lines) + "\n}\n", DataError)


def read(beton: Path) -> Manifest:
    """The manifest of a .beton file. Raises DataError if it is missing or damaged."""
    path = path_of(beton)
    if not path.exists():
        raise DataError(
            f"{beton} has no manifest ({path.name}): it was not written by `acdc data write`, or not to the end. "
            "Write it again."
        )
    values = reading.read_json(path, Any, DataError, "write the data set again")
    if not isinstance(values, dict) or values.get("version") != VERSION:
        raise DataError(f"{path}: not a manifest of version {VERSION}. Write the data set again with this acdc.")
    known = {field.name: field.default is MISSING for field in fields(Manifest)}
    if not set(values) <= set(known) or any(required and key not in values for key, required in known.items()):
        raise DataError(f"{path}: keys are missing or unknown. Write the data set again.")
    try:
        return TypeAdapter(Manifest).validate_python(values)
    except ValidationError as cause:
        key = cause.errors()[0]["loc"][0]
        raise DataError(
            f"{path}: {key} is not a value that `acdc data write` writes. Write the data set again."
        ) from cause


def check_quick(beton: Path) -> Manifest:
    """Check size and structure of the file, and that header, labels and table are unchanged.

    It takes a fraction of a second at any size, and runs whenever a file is opened. Raises DataError. Damage inside
    images is found by `check_full`.
    """
    manifest = read(beton)
    _check_size(beton, manifest)
    file = BetonFile(beton)
    first = range(-(-file.index_end // PAGE))
    last = range(file.table_start // PAGE, len(manifest.page_crc32))
    with beton.open("rb") as stream:
        for page in sorted({*first, *last}):
            stream.seek(page * PAGE)
            if zlib.crc32(stream.read(PAGE)) != manifest.page_crc32[page]:
                raise DataError(_damage(file, [page]))
    _check_index(file, manifest)
    return manifest


def check_full(beton: Path, progress: Progress | None = None) -> Manifest:
    """Check every byte against the manifest. Raises DataError that names the damaged pages and the images they hold."""
    manifest = read(beton)
    _check_size(beton, manifest)
    file = BetonFile(beton)
    page_crc32, content_hash = checksums(file, progress)
    damaged = [page for page, crc32 in enumerate(manifest.page_crc32) if crc32 != page_crc32[page]]
    if damaged:
        raise DataError(_damage(file, damaged))
    _check_index(file, manifest)
    if content_hash != manifest.content_hash:
        raise DataError(f"{beton}: the manifest's content hash belongs to other images. Write the data set again.")
    return manifest


def _check_size(beton: Path, manifest: Manifest) -> None:
    try:
        size = beton.stat().st_size
    except OSError as cause:
        raise DataError(f"{beton}: cannot be read: {cause.strerror}. Write it again (`acdc data write`).") from cause
    if size != manifest.bytes:
        raise DataError(
            f"{beton}: has {size} bytes, its manifest says {manifest.bytes}. "
            "Write it again (`acdc data write --force`) or fetch another copy."
        )
    if len(manifest.page_crc32) != -(-manifest.bytes // PAGE):
        raise DataError(f"{path_of(beton)}: checksums are missing. Write the data set again.")


def _check_index(file: BetonFile, manifest: Manifest) -> None:
    classes, counts = len(manifest.class_names), len(manifest.label_histogram)
    if not manifest.classes == classes == counts:
        raise DataError(
            f"{path_of(file.path)}: {manifest.classes} classes, but {classes} names and {counts} counts. "
            "Write the data set again."
        )
    # before they are counted, because the count is as long as the largest class
    if (beyond := manifest.labels.unknown(file.labels)).size:
        index = int(beyond[0])
        raise DataError(
            f"{file.path}: image {index} has {manifest.targets} {file.labels[index]}, but the set has {classes} "
            f"{manifest.labels.word}, numbered from 0. Write the data set again."
        )
    if file.samples != manifest.samples or manifest.labels.counts(file.labels) != manifest.label_histogram:
        raise DataError(f"{file.path}: its labels are not those of its manifest. Write the data set again.")


def _damage(file: BetonFile, pages: list[int]) -> str:
    named = "; ".join(f"page {page} ({_touched(file, page)})" for page in pages[:_PAGES_NAMED])
    more = f"; and {len(pages) - _PAGES_NAMED} more" if len(pages) > _PAGES_NAMED else ""
    return (
        f"{file.path}: {len(pages)} of its 8 MiB pages changed since it was written: {named}{more}. "
        "Write it again (`acdc data write --force`) or fetch another copy."
    )


def _touched(file: BetonFile, page: int) -> str:
    begin, end = page * PAGE, (page + 1) * PAGE
    images = np.flatnonzero((file.starts < end) & (file.starts + file.lengths > begin))
    parts: list[str] = []
    if begin < file.index_end:
        parts.append("header and labels")
    if len(images):
        parts.append(_span(images.tolist()))
    if end > file.table_start:
        parts.append("allocation table")
    return ", ".join(parts) or "padding"


def _span(images: Iterable[int]) -> str:
    ordered = sorted(images)
    if len(ordered) == 1:
        return f"image {ordered[0]}"
    return f"{len(ordered)} images between {ordered[0]} and {ordered[-1]}"
