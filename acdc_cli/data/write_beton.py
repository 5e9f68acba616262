"""Turns images into a .beton file and its manifest: every source decoded in full, in parallel, all or nothing."""

from __future__ import annotations

import io
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from acdc_cli import __version__, console, files
from acdc_cli.data import manifest as manifests
from acdc_cli.data import worker
from acdc_cli.data.beton import LARGEST_IMAGE, LONGEST_SIDE, BetonFile, Sample, write_beton
from acdc_cli.data.image_file import read_image
from acdc_cli.data.labels import Kind, Labels
from acdc_cli.data.manifest import BadImage, ContentHash, Manifest
from acdc_cli.errors import DataError

Pixels = NDArray[np.uint8]

REENCODED_QUALITY = 97
"""JPEG quality, without chroma subsampling, of images that should pass through but are not RGB JPEGs."""
_CHUNK = 8
"""Images in a message to or from a worker."""
_BAD_SHOWN = 10


@dataclass(frozen=True)
class Settings:
    """How images are stored. The bytes of a JPEG are kept where nothing about it has to change."""

    quality: int = 90
    """JPEG quality of images that are encoded."""
    max_side: int | None = None
    """Larger images are shrunk to this longest side, in pixels."""
    raw_share: float = 0.0
    """Share of images stored as pixels, which need no decoding and about ten times the space."""
    original: bool = False
    """Store the source's own bytes; the other settings are not used. Arrays are stored as pixels."""
    reencode: bool = False
    """Encode all images that are not stored as pixels, JPEGs that fit included."""

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise DataError(f"JPEG quality: expected 1 to 100, found {self.quality}")
        if not 0 <= self.raw_share <= 1:
            raise DataError(f"share of raw images: expected 0 to 1, found {self.raw_share}")
        if self.max_side is not None and not 1 <= self.max_side <= LONGEST_SIDE:
            raise DataError(f"longest side: expected 1 to {LONGEST_SIDE} pixels, found {self.max_side}")


@dataclass(frozen=True)
class Source:
    """A split of a data set before it is written."""

    name: str
    split: str
    images: Sequence[str] | Pixels
    """Paths relative to `root`, or (samples, height, width, 3) pixels."""
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    fingerprint: str
    """Changes when the source does."""
    root: Path = Path()
    targets: Kind = "class"
    """`bits`: `class_names` are labels, of which an image may have several."""


@dataclass(frozen=True)
class Encoded:
    sample: Sample
    reencoded: bool
    """It is a JPEG whose bytes are not the source's."""


@dataclass(frozen=True)
class _Task:
    index: int
    image: str | Pixels
    label: int


def write(
    source: Source, destination: Path, settings: Settings, *, workers: int, skip_bad: bool = False, force: bool = False
) -> Manifest:
    """Writes `destination` and its manifest, or leaves both as they are.

    The same source and settings give the same bytes, whatever the number of workers (0: this process does the work).
    A file already written from them is kept; any other is replaced only by `force`.
    Raises DataError if an image cannot be read (`skip_bad` leaves it out) or a worker dies.
    """
    with files.explained(destination, DataError):
        destination.parent.mkdir(parents=True, exist_ok=True)
        busy = DataError(f"{destination}: another process is writing it now. Wait for it, or end it.")
        with files.locked(destination.with_name(destination.name + ".lock"), busy):
            if not force and (finished := _finished(source, destination, settings)):
                console.say(f"{destination}: already written, {finished.summary()}")
                return finished
            made = _write(source, destination, settings, workers, skip_bad)
            console.say(f"{destination}: {made.summary()}")
            return made


def _finished(source: Source, destination: Path, settings: Settings) -> Manifest | None:
    """The manifest of an existing file with these images and settings; None if there is no file."""
    if not destination.exists():
        return None
    try:
        present = manifests.check_quick(destination)
    except DataError as cause:
        raise DataError(f"{cause} (--force writes it again)") from cause
    # files whose manifests lack this setting have every JPEG encoded
    made_with = dict(present.settings)
    made_with.setdefault("reencode", not settings.original and settings.raw_share < 1)
    if made_with != asdict(settings):
        raise DataError(
            f"{destination}: already written, with other settings: {_described(made_with)}, not "
            f"{_described(asdict(settings))}. --force replaces it, --out writes elsewhere."
        )
    if (present.name, present.split, present.source) != (source.name, source.split, source.fingerprint):
        raise DataError(
            f"{destination}: already written, from other images ({present.name}, {present.samples:,} of "
            f"{present.split}). --force replaces it, --out writes elsewhere."
        )
    return present


def _described(settings: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def _write(source: Source, destination: Path, settings: Settings, workers: int, skip_bad: bool) -> Manifest:
    partial = destination.with_name(destination.name + ".partial")
    bad_list = destination.with_name(destination.name + ".bad.txt")
    intake = _Intake(source, settings, workers, skip_bad)
    try:
        # a link of this name would lead the write to another file
        partial.unlink(missing_ok=True)
        write_beton(partial, intake.samples(), capacity=len(source.labels))
        if intake.bad:
            files.write_text(bad_list, "".join(f"{image.path}\t{image.reason}\n" for image in intake.bad), DataError)
        intake.refuse_bad(bad_list)
        manifest = _verified(partial, source, settings, intake)
        files.sync(partial)
        _publish(partial, destination, manifest)
    finally:
        # what is left of it is overwritten by the next attempt
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    if not intake.bad:
        bad_list.unlink(missing_ok=True)
    return manifest


def _publish(partial: Path, destination: Path, manifest: Manifest) -> None:
    """Gives both files their names, or leaves both as they were.

    The manifest goes first: its few bytes can be brought back if the other does not follow. If the process dies
    in between, `check_quick` refuses the old file with the new manifest.
    """
    beside = manifests.path_of(destination)
    before = beside.read_bytes() if beside.exists() else None
    try:
        manifests.write(destination, manifest)
        os.replace(partial, destination)
    except BaseException:
        if partial.exists():
            _put_back(beside, before)
        raise
    files.sync(destination.parent)


def _put_back(beside: Path, before: bytes | None) -> None:
    # if this fails as well, it is as if the process had died
    with suppress(OSError, DataError):
        if before is None:
            beside.unlink(missing_ok=True)
        else:
            files.write_bytes(beside, before, DataError)


class _Intake:
    """The stream of encoded images into the file, and its statistics."""

    def __init__(self, source: Source, settings: Settings, workers: int, skip_bad: bool) -> None:
        self._source = source
        self._settings = settings
        self._workers = workers
        self._skip_bad = skip_bad
        self._content = ContentHash()
        self.bad: list[BadImage] = []
        self.reencoded = 0
        self._labels = array("q")

    @property
    def content_hash(self) -> str:
        return self._content.hexdigest()

    @property
    def histogram(self) -> tuple[int, ...]:
        """Images of each class, or with each label."""
        return Labels(self._source.class_names, self._source.targets).counts(np.array(self._labels, np.int64))

    def samples(self) -> Iterator[Sample]:
        """The readable images. After the first unreadable one, the rest are only checked, so that all are listed."""
        title = f"Writing {self._source.name} {self._source.split}"
        with console.progress(title, "{task.fields[bad]}") as bar:
            task = bar.add_task(title, total=len(self._source.labels), bad="")
            for result in encode_all(self._source, self._settings, self._workers):
                if isinstance(result, BadImage):
                    self.bad.append(result)
                elif self._skip_bad or not self.bad:
                    yield self._counted(result)
                bar.update(task, advance=1, bad=f"{len(self.bad)} unreadable" if self.bad else "")

    def _counted(self, result: Encoded) -> Sample:
        sample = result.sample
        self._content.add(sample.label, sample.mode, sample.height, sample.width, sample.data)
        self._labels.append(sample.label)
        self.reencoded += result.reencoded
        return sample

    def refuse_bad(self, bad_list: Path) -> None:
        if not self.bad:
            return
        count, total = len(self.bad), len(self._source.labels)
        if self._skip_bad and count < total:
            console.warn(f"{count} of {total} images cannot be read and are left out; they are listed in {bad_list}")
            return
        shown = "".join(f"\n  {image.path}: {image.reason}" for image in self.bad[:_BAD_SHOWN])
        more = f"\n  … and {count - _BAD_SHOWN} more" if count > _BAD_SHOWN else ""
        way_out = "" if count == total else " Repair them, or leave them out with --skip-bad."
        raise DataError(
            f"{count} of {total} images cannot be read, so the set is not written.{way_out} All are listed in "
            f"{bad_list}.{shown}{more}"
        )


def _verified(partial: Path, source: Source, settings: Settings, intake: _Intake) -> Manifest:
    """The manifest of a file, which is read back and compared with what was written."""
    file = BetonFile(partial)
    title = f"Checking {source.name} {source.split}"
    with console.progress(title) as bar:
        task = bar.add_task(title)
        page_crc32, content_hash = manifests.checksums(
            file, lambda done, total: bar.update(task, completed=done >> 20, total=total >> 20)
        )
    histogram = Labels(source.class_names, source.targets).counts(file.labels)
    if histogram != intake.histogram or content_hash != intake.content_hash:
        raise DataError(f"{partial}: the file read back differs from what was written; check the disk")
    for index in (0, file.samples // 2, file.samples - 1):
        file.decode(index)
    return Manifest(
        version=manifests.VERSION,
        name=source.name,
        split=source.split,
        samples=file.samples,
        classes=len(source.class_names),
        class_names=source.class_names,
        settings=asdict(settings),
        source=source.fingerprint,
        bytes=partial.stat().st_size,
        page_crc32=page_crc32,
        content_hash=content_hash,
        label_histogram=histogram,
        reencoded=intake.reencoded,
        bad=tuple(intake.bad),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        acdc_version=__version__,
        targets=source.targets,
    )


def encode_all(source: Source, settings: Settings, workers: int) -> Iterator[Encoded | BadImage]:
    """Every image of the source in its order, encoded by worker processes (0: by this one)."""
    encode_chunk = partial(_encode_chunk, root=source.root, settings=settings)
    what = f"images of {source.name} {source.split}; nothing was written"
    for results in worker.in_order(encode_chunk, _chunks(source), workers, what):
        yield from results


def _chunks(source: Source) -> Iterator[list[_Task]]:
    for begin in range(0, len(source.labels), _CHUNK):
        indices = range(begin, min(begin + _CHUNK, len(source.labels)))
        yield [_Task(index, source.images[index], int(source.labels[index])) for index in indices]


def _encode_chunk(tasks: list[_Task], root: Path, settings: Settings) -> list[Encoded | BadImage]:
    return [_encode_or_explain(task, root, settings) for task in tasks]


def _encode_or_explain(task: _Task, root: Path, settings: Settings) -> Encoded | BadImage:
    name = task.image if isinstance(task.image, str) else f"image {task.index}"
    try:
        return encode(task.image, task.label, task.index, root, settings)
    except Exception as cause:
        return BadImage(name, str(cause) or type(cause).__name__)


def encode(image: str | Pixels, label: int, index: int, root: Path, settings: Settings) -> Encoded:
    """One image as it will be stored. Raises ValueError if it cannot be read to its end."""
    if not isinstance(image, str):
        pixels = Image.fromarray(image)
        return Encoded(_raw(pixels, label) if settings.original else _stored(pixels, label, index, settings), False)
    read = read_image(root / image)
    if read.is_plain_jpeg and _passes_through(read.pixels, index, settings):
        return Encoded(Sample(label, "jpg", read.pixels.height, read.pixels.width, read.data), False)
    if settings.original:
        return Encoded(_jpeg(read.pixels, label, REENCODED_QUALITY, subsampling=0), True)
    sample = _stored(read.pixels, label, index, settings)
    return Encoded(sample, sample.mode == "jpg")


def _passes_through(image: Image.Image, index: int, settings: Settings) -> bool:
    if settings.original or settings.reencode:
        return settings.original
    fits = settings.max_side is None or max(image.size) <= settings.max_side
    return fits and not _is_raw(index, settings)


def _is_raw(index: int, settings: Settings) -> bool:
    """Spread evenly, and the same in every run: floor(n * share) of n images are raw."""
    return int((index + 1) * settings.raw_share) > int(index * settings.raw_share)


def _stored(image: Image.Image, label: int, index: int, settings: Settings) -> Sample:
    """image: RGB."""
    image = _shrunk(image, settings.max_side)
    if _is_raw(index, settings):
        return _raw(image, label)
    return _jpeg(image, label, settings.quality)


def _shrunk(image: Image.Image, max_side: int | None) -> Image.Image:
    """Each new pixel is the mean of the area it covers, as in FFCV's own writer; nothing is ever enlarged."""
    if max_side is None or max(image.size) <= max_side:
        return image
    ratio = max_side / max(image.size)
    width, height = (max(1, round(side * ratio)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


def _raw(image: Image.Image, label: int) -> Sample:
    size = 3 * image.width * image.height
    if size > LARGEST_IMAGE:
        raise ValueError(f"{size} bytes of pixels are too many for a raw image; limit its longest side")
    return Sample(label, "raw", image.height, image.width, image.tobytes())


def _jpeg(image: Image.Image, label: int, quality: int, subsampling: int = 2) -> Sample:
    """subsampling: 2 halves the colours' resolution both ways (4:2:0, as FFCV's writer does), 0 keeps it."""
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=quality, subsampling=subsampling)
    return Sample(label, "jpg", image.height, image.width, encoded.getvalue())
