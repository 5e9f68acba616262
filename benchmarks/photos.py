"""JPEGs like ImageNet's without a download: the photographs that Python packages ship, cropped, flipped, recoloured."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from acdc_cli.data import manifest as manifests
from acdc_cli.data.beton import BetonFile
from acdc_cli.data.known_sets import known_set
from acdc_cli.data.sets.photographs import ORIGINAL
from acdc_cli.data.write_beton import Source, write
from benchmarks.skipped import SkippedError

HOME = Path("data/benchmarks")
CLASSES = tuple(str(label) for label in range(10))
_SHIPPED = {
    "skimage": ("data/astronaut.png", "data/chelsea.png", "data/coffee.png", "data/rocket.jpg"),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "matplotlib": ("mpl-data/sample_data/grace_hopper.jpg",),
}
_SIZE = (500, 375)
"""Width and height in pixels: the most frequent size in ImageNet."""
_QUALITY = 97
_VALIDATION = 40
_VERSION = 1
"""Goes up when the photographs that are made change."""


@dataclass(frozen=True)
class Photos:
    """A data set for recipes, and for competitors the same JPEGs byte by byte."""

    folder: Path
    """Holds train.beton and val.beton."""
    jpegs: Path
    """`<class>/<index>.jpg`, as torchvision's ImageFolder wants them."""
    facts: dict[str, Any]
    """For the result."""


def prepare(count: int) -> Photos:
    """`count` photographs of 500x375 pixels, then written as `acdc data write` writes ImageNet (longest side 400).

    What was made before is kept. Raises SkippedError where no package with photographs is installed.
    """
    sources = _sources()
    folder = HOME / f"photos-{count}"
    fingerprint = _fingerprint(str(count), *sources)
    if _source_of(folder / "train.beton") != fingerprint:
        with tempfile.TemporaryDirectory() as scratch:
            drawn = _draw_all(count, list(sources.values()), Path(scratch))
            source = Source("photos", "train", drawn, _labels(count), CLASSES, fingerprint, Path(scratch))
            write(
                source,
                folder / "train.beton",
                known_set("imagenet").train,
                workers=_workers(count),
                force=True,
            )
        _unpack(BetonFile(folder / "train.beton"), folder / "jpegs")
        _write_copies(folder, "val", folder / "jpegs", _VALIDATION, min(_VALIDATION, count))
    file = BetonFile(folder / "train.beton")
    facts = {
        "photographs": sorted(sources),
        "count": count,
        "pixels": "x".join(str(side) for side in file.sizes.mean(axis=0).round().astype(int)[::-1]),
        "mean_jpeg_bytes": round(float(file.lengths.mean())),
    }
    return Photos(folder, folder / "jpegs", facts)


def repeated(photos: Photos, times: int) -> Photos:
    """The same data set with every training photograph `times` times: as many bytes, drawn from as large a file."""
    count = photos.facts["count"]
    folder = photos.folder.with_name(f"{photos.folder.name}x{times}")
    _write_copies(folder, "train", photos.jpegs, count * times, count)
    _write_copies(folder, "val", photos.jpegs, _VALIDATION, min(_VALIDATION, count))
    return Photos(folder, photos.jpegs, photos.facts | {"count": count * times})


def _sources() -> dict[str, Path]:
    """The photographs at hand, as `package/file`. No package is imported: only its files are read."""
    photographs: dict[str, Path] = {}
    for package, names in _SHIPPED.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            continue
        root = Path(spec.submodule_search_locations[0])
        photographs |= {f"{package}/{Path(name).name}": root / name for name in names if (root / name).exists()}
    if not photographs:
        raise SkippedError(
            "no packaged photographs: pip install --no-deps -r benchmarks/requirements.txt brings some "
            f"(looked into {', '.join(_SHIPPED)})"
        )
    return photographs


def _draw_all(count: int, sources: Sequence[Path], folder: Path) -> list[str]:
    originals = [Image.open(path).convert("RGB") for path in sources]

    def draw(index: int) -> str:
        name = f"{index:05}.jpg"
        _draw(index, originals[index % len(originals)]).save(folder / name, quality=_QUALITY)
        return name

    with ThreadPoolExecutor(_cores()) as threads:
        return list(threads.map(draw, range(count)))


def _draw(index: int, original: Image.Image) -> Image.Image:
    """Photograph `index`: a random crop of the original, perhaps mirrored, in other colours, with a little noise."""
    random = np.random.default_rng((_VERSION, index))
    ratio = _SIZE[0] / _SIZE[1]
    largest = min(original.width, original.height * ratio)
    width = largest * random.uniform(0.5, 1)
    left = random.uniform(0, original.width - width)
    top = random.uniform(0, original.height - width / ratio)
    image = original.resize(_SIZE, Image.Resampling.BICUBIC, (left, top, left + width, top + width / ratio))
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(random.uniform(0.7, 1.3))
    noisy = np.asarray(image) + random.normal(0, 4, (*_SIZE[::-1], 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _unpack(file: BetonFile, folder: Path) -> None:
    for label in set(file.labels.tolist()):
        (folder / CLASSES[label]).mkdir(parents=True, exist_ok=True)
    for index in range(file.samples):
        (folder / _name(index)).write_bytes(file.image_bytes(index))


def _write_copies(folder: Path, split: str, jpegs: Path, count: int, distinct: int) -> None:
    """`count` of the JPEGs as they are, beginning anew after `distinct`."""
    destination = folder / f"{split}.beton"
    origin = _source_of(jpegs.parent / "train.beton")
    fingerprint = _fingerprint(str(origin), str(count), str(distinct))
    if _source_of(destination) == fingerprint:
        return
    names = [_name(index % distinct) for index in range(count)]
    labels = _labels(distinct)[np.arange(count) % distinct]
    source = Source("photos", split, names, labels, CLASSES, fingerprint, jpegs)
    write(source, destination, ORIGINAL, workers=_workers(count), force=True)


def _name(index: int) -> str:
    return f"{CLASSES[index % len(CLASSES)]}/{index:05}.jpg"


def _labels(count: int) -> Any:
    return np.arange(count) % len(CLASSES)


def _source_of(beton: Path) -> str | None:
    return manifests.read(beton).source if manifests.path_of(beton).exists() else None


def _fingerprint(*parts: str) -> str:
    return hashlib.sha256("\n".join((str(_VERSION), *parts)).encode()).hexdigest()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _workers(count: int) -> int:
    """Processes take longer to start than a few photographs to encode."""
    return _cores() if count > 200 else 0
