"""What a set of images is like: classes, sizes, mean and deviation, and what is wrong with its files."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from acdc_cli import files
from acdc_cli.data import worker
from acdc_cli.data.beton import BetonFile
from acdc_cli.data.image_file import decode_image
from acdc_cli.data.image_set import ImageSet, Split
from acdc_cli.data.order import spread

_CHUNK = 64
"""Images in a message to a worker."""
_NAMED = 10
"""Files of each kind that are named."""
_ORIENTATION = 0x0112
_UPRIGHT = 1
_PNG_DEPTH = 24
"""Position of the bits of a channel in a PNG file."""
_MODES = {"grey": ("L", "1"), "palette or alpha": ("P", "PA", "LA", "RGBA", "RGBX"), "CMYK": ("CMYK",)}
KINDS = {
    "unreadable": "cannot be read; acdc data write --skip-bad leaves them out",
    "16 bits": "have 16 bits a channel: convert them to 8 first, or their values may be cut",
    "CMYK": "are CMYK: converted to RGB without their colour profile",
    "rotated": "have an EXIF rotation, which acdc, like torchvision, ignores: rotate their pixels first",
    "palette or alpha": "have a palette or an alpha channel, which is dropped",
    "grey": "are grey: converted to RGB",
}
"""What is unlike upright RGB images of 8 bits a channel, the most serious first."""


@dataclass
class Inspection:
    """What a process saw of some images."""

    digests: list[int] = field(default_factory=list)
    """The first 8 bytes of the hash of each image's bytes."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Width and height of each readable image."""
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 3)))
    """Sums over images of each channel's mean, and of the mean of its square, in the range 0 to 1."""
    remarks: list[tuple[str, str]] = field(default_factory=list)
    """(kind, name) of images that are not upright RGB ones of 8 bits a channel."""


@dataclass(frozen=True)
class SplitFacts:
    images: int
    looked_at: int
    """Images that were read; their number if it was limited."""
    classes: dict[str, int]
    """Images of each class."""
    width: tuple[int, int, int] | None
    """Smallest, median and largest; None if no image can be read."""
    height: tuple[int, int, int] | None
    side: int | None
    """Median of the shorter sides."""
    one_size: bool
    mean: tuple[float, ...] | None
    """Mean of the channels red, green and blue in the range 0 to 1; each image counts the same."""
    std: tuple[float, ...] | None
    kinds: dict[str, int]
    """Images of each of `KINDS` that occurs."""
    duplicates: int
    """Images whose bytes another image of the split has, too."""
    two_classes: int
    """Those of them whose other image belongs to another class."""
    examples: dict[str, list[str]]
    """Some files of each kind that is not empty."""


@dataclass(frozen=True)
class SetFacts:
    path: str
    splits: dict[str, SplitFacts]
    shared: int | None
    """Validation images whose bytes a training image has, too; None without both splits."""
    shared_examples: list[tuple[str, ...]]


def describe(data: ImageSet, limit: int | None, workers: int, advance: Callable[[int], object]) -> SetFacts:
    """limit: images of each split to look at, spread evenly; None: all.  workers: processes; 0: this one.

    advance: called with the number of images done since the last call. Memory grows by a few dozen bytes an image.
    """
    facts, digests, chosen = {}, {}, {}
    for name, split in data.splits.items():
        chosen[name] = chosen_of(split, limit)
        facts[name], digests[name] = _described(split, name, chosen[name], workers, advance)
    shared, examples = None, []
    if len(digests) > 1:
        train, val = digests["train"], digests["val"]
        at = np.flatnonzero(np.isin(val, train))
        shared = len(at)
        for index in at[:_NAMED].tolist():
            twin = int(np.flatnonzero(train == val[index])[0])
            pair = (("val", chosen["val"][index]), ("train", chosen["train"][twin]))
            examples.append(tuple(_name(data.split(name), int(position)) for name, position in pair))
    return SetFacts(str(data.path), facts, shared, examples)


def chosen_of(split: Split, limit: int | None) -> NDArray[np.int64]:
    """The positions of the images to look at."""
    stored = len(split.labels)
    return spread(min(limit or stored, stored), stored)


def _described(
    split: Split, name: str, chosen: NDArray[np.int64], workers: int, advance: Callable[[int], object]
) -> tuple[SplitFacts, NDArray[np.uint64]]:
    """The facts, and the digests of the images."""
    digests, sizes, sums = [], [], np.zeros((2, 3))
    kinds: Counter[str] = Counter()
    examples: dict[str, list[str]] = defaultdict(list)
    inspect = partial(_inspect_all, split.images if isinstance(split.images, BetonFile) else split.images.root)
    for inspection in worker.in_order(inspect, _chunks(split, chosen), workers, f"images of {name}"):
        digests.append(np.asarray(inspection.digests, np.uint64))
        sizes.append(np.asarray(inspection.sizes, np.int32).reshape(-1, 2))
        sums += inspection.sums
        for kind, name in inspection.remarks:
            kinds[kind] += 1
            if len(examples[kind]) < _NAMED:
                examples[kind].append(name)
        advance(len(inspection.digests))
    all_digests = np.concatenate(digests)
    duplicates, two_classes = _duplicates(all_digests, split.labels[chosen])
    counts = np.bincount(split.labels, minlength=len(split.class_names))
    facts = SplitFacts(
        images=len(split.labels),
        looked_at=len(chosen),
        classes=dict(zip(split.class_names, counts.tolist(), strict=True)),
        **_of_pixels(np.concatenate(sizes), sums),
        kinds=dict(kinds),
        duplicates=duplicates,
        two_classes=two_classes,
        examples=dict(examples),
    )
    return facts, all_digests


def _of_pixels(sizes: NDArray[np.int32], sums: NDArray[np.float64]) -> dict[str, Any]:
    if not len(sizes):
        return {"width": None, "height": None, "side": None, "one_size": False, "mean": None, "std": None}
    mean, square = sums / len(sizes)
    return {
        "width": _spread_of(sizes[:, 0]),
        "height": _spread_of(sizes[:, 1]),
        "side": int(np.median(sizes.min(axis=1))),
        "one_size": bool((sizes == sizes[0]).all()),
        "mean": _rounded(mean),
        "std": _rounded(np.sqrt(np.maximum(square - mean**2, 0))),
    }


def _duplicates(digests: NDArray[np.uint64], labels: NDArray[np.int64]) -> tuple[int, int]:
    """Images beyond the first of each set of equal ones, and those whose class is not that of the first."""
    order = np.argsort(digests, kind="stable")
    same = digests[order][1:] == digests[order][:-1]
    first = np.maximum.accumulate(np.where(np.concatenate([[True], ~same]), np.arange(len(order)), 0))
    differing = labels[order] != labels[order][first]
    return int(same.sum()), int(differing.sum())


def _spread_of(values: NDArray[np.int32]) -> tuple[int, int, int]:
    return int(values.min()), int(np.median(values)), int(values.max())


def _rounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)


def _chunks(split: Split, chosen: NDArray[np.int64]) -> Iterator[Sequence[int | str]]:
    """Positions in a .beton file, or paths of files."""
    images = split.images
    for start in range(0, len(chosen), _CHUNK):
        part = chosen[start : start + _CHUNK].tolist()
        yield part if isinstance(images, BetonFile) else [str(images.images[index]) for index in part]


def _name(split: Split, index: int) -> str:
    return f"image {index}" if isinstance(split.images, BetonFile) else str(split.images.images[index])


def _inspect_all(place: BetonFile | Path, images: Sequence[int | str]) -> Inspection:
    inspection = Inspection()
    for image in images:
        name = str(image) if isinstance(image, str) else f"image {image}"
        try:
            data, raw = _read(place, image)
        except OSError as cause:
            # what cannot be read is no copy of anything
            data = name.encode()
            inspection.remarks.append(("unreadable", f"{name}: {cause.strerror}"))
        else:
            _inspect(inspection, name, data, raw)
        inspection.digests.append(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little"))
    return inspection


def _read(place: BetonFile | Path, image: int | str) -> tuple[bytes, Image.Image | None]:
    """The image's own bytes; for one that is stored as pixels, also the image."""
    if isinstance(place, BetonFile):
        index = int(image)
        raw = Image.fromarray(place.decode(index)) if place.mode(index) == "raw" else None
        return bytes(place.image_bytes(index)), raw
    return files.read_bytes(place / str(image)), None


def _inspect(inspection: Inspection, name: str, data: bytes, raw: Image.Image | None) -> None:
    try:
        if raw is None:
            inspection.remarks += [(kind, name) for kind in _kinds(data)]
        pixels = decode_image(data).pixels if raw is None else raw
    except ValueError as cause:
        inspection.remarks.append(("unreadable", f"{name}: {cause}"))
        return
    inspection.sizes.append(pixels.size)
    counts = np.asarray(pixels.histogram(), np.float64).reshape(3, 256) / (pixels.width * pixels.height)
    levels = np.arange(256) / 255
    inspection.sums += np.stack([counts @ levels, counts @ levels**2])


def _kinds(data: bytes) -> list[str]:
    """The kinds that the file's header names; none for what is no image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = Image.open(io.BytesIO(data))
            # for a PNG file, Pillow would decode its pixels
            exif = {} if header.format == "PNG" else header.getexif()
            rotated = exif.get(_ORIENTATION, _UPRIGHT) not in (0, _UPRIGHT)
    # as in `decode_image`, which explains the problem
    except Exception:
        return []
    kinds = [kind for kind, modes in _MODES.items() if header.mode in modes]
    # Pillow reduces the colours of such a PNG file to 8 bits as it decodes
    if header.mode.startswith("I") or (header.format == "PNG" and data[_PNG_DEPTH] == 16):
        kinds.append("16 bits")
    return kinds + (["rotated"] if rotated else [])
