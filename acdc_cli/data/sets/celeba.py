"""CelebA: faces with 40 labels each, in the layout of its authors and of torchvision (Liu et al. 2015; P2 C.2)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from acdc_cli import files
from acdc_cli.data.image_folder import IMAGE_SUFFIXES
from acdc_cli.data.known_sets import KnownSet
from acdc_cli.data.write_beton import Settings, Source
from acdc_cli.errors import DataError

_LABELS = 40
_ATTRIBUTES, _PARTITION, _IMAGES = "list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba"
_PARTITIONS = {"celeba": {"train": 0, "val": 1}, "celeba_test": {"train": 0, "val": 2}}
"""The number of each split in `list_eval_partition.txt`, whose 0 is for training, 1 for validation, 2 for tests."""
_ORIGINAL = Settings(original=True)
_REFETCH = "fetch another copy"


@dataclass(frozen=True)
class _Listed:
    """What the two lists say of all images, in their order."""

    names: tuple[str, ...]
    """Names of the image files."""
    labels: tuple[str, ...]
    targets: NDArray[np.int64]
    partition: NDArray[np.int64]


def read_celeba(name: str, split: str, root: Path | None, download: bool) -> Source:
    """Raises DataError if a file is missing, or if lists and images do not match."""
    if root is None or download:
        raise DataError(
            f"{name}: download it from mmlab.ie.cuhk.edu.hk/projects/CelebA.html, and name the folder with "
            f"{_ATTRIBUTES}, {_PARTITION} and {_IMAGES}/ or {_IMAGES}.zip with --source"
        )
    home = _home(root)
    listed = _listed(home, *(_version(home / list_) for list_ in (_ATTRIBUTES, _PARTITION)))
    within, sizes = _images(home)
    _require_match(home, listed.names, sizes)
    chosen = np.flatnonzero(listed.partition == _PARTITIONS[name][split])
    if not chosen.size:
        raise DataError(f"{home / _PARTITION}: no image is in part {_PARTITIONS[name][split]}, which {split} needs")
    images = [f"{within}/{listed.names[index]}" for index in chosen]
    fingerprint = hashlib.sha256(listed.targets[chosen].tobytes())
    for index in chosen:
        fingerprint.update(f"{listed.names[index]}\0{sizes[listed.names[index]]}\0".encode())
    targets = listed.targets[chosen]
    return Source(name, split, images, targets, listed.labels, fingerprint.hexdigest(), home, targets="bits")


def _home(root: Path) -> Path:
    """The folder of the lists: this one, or `celeba/` in it, as torchvision has it."""
    return next((each for each in (root, root / "celeba") if (each / _ATTRIBUTES).exists()), root)


def _version(path: Path) -> tuple[int, int]:
    """Changes when the file does. Raises DataError if there is none."""
    try:
        state = path.stat()
    except OSError as cause:
        raise DataError(f"{path}: {cause.strerror}; CelebA needs {_ATTRIBUTES} and {_PARTITION}") from cause
    return state.st_size, state.st_mtime_ns


@lru_cache(maxsize=2)
def _listed(home: Path, *versions: tuple[int, int]) -> _Listed:
    """Read once for both splits.  versions: of the lists."""
    where = home / _ATTRIBUTES
    count, header, *lines = _lines(where)
    labels = tuple(header.split())
    if len(labels) != _LABELS or len(set(labels)) != _LABELS:
        raise DataError(f"{where}: line 2 names {len(set(labels))} attributes, but CelebA has {_LABELS}; {_REFETCH}")
    if count.strip() != str(len(lines)):
        raise DataError(f"{where}: line 1 announces {count.strip()[:20]} images, but {len(lines)} follow; {_REFETCH}")
    names, bits = _columns(where, lines, _LABELS, {"-1": "0", "1": "1"}, first_line=3)
    parts = home / _PARTITION
    others, partition = _columns(parts, _lines(parts), 1, {part: part for part in "012"}, first_line=1)
    if names != others:
        differing = sorted(set(names) ^ set(others)) or ["the order"]
        raise DataError(
            f"{home}: {_ATTRIBUTES} and {_PARTITION} list different images: {differing[0]} differs; {_REFETCH}"
        )
    targets = np.array([int(each[::-1], 2) for each in bits], np.int64)
    return _Listed(names, labels, targets, np.array([int(each) for each in partition], np.int64))


def _lines(path: Path) -> list[str]:
    try:
        text = files.read_bytes(path).decode()
    except OSError as cause:
        raise DataError(f"{path}: {cause.strerror}") from cause
    except UnicodeDecodeError as cause:
        raise DataError(f"{path}: is no text file; {_REFETCH}") from cause
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 3:
        raise DataError(f"{path}: has {len(lines)} lines and lists no images; {_REFETCH}")
    return lines


def _columns(
    path: Path, lines: Sequence[str], columns: int, characters: Mapping[str, str], first_line: int
) -> tuple[tuple[str, ...], list[str]]:
    """The image's name of each line, and its values, each as one character.  characters: by value.

    There are eight million values: as text they would fill a gigabyte.
    """
    names, texts = [], []
    for number, line in enumerate(lines, first_line):
        name, *values = line.split()
        if len(values) != columns:
            raise DataError(f"{path}: line {number} has {len(values)} values, expected {columns}; {_REFETCH}")
        try:
            texts.append("".join([characters[value] for value in values]))
        except KeyError as wrong:
            expected = " or ".join(characters)
            raise DataError(
                f"{path}: line {number} has the value {wrong.args[0]}, expected {expected}; {_REFETCH}"
            ) from wrong
        names.append(name)
    return tuple(names), texts


def _images(home: Path) -> tuple[str, dict[str, int]]:
    """Where the images lie below `home`, and the size of each in bytes, by name: in a folder, or in the archive."""
    folder, archive = home / _IMAGES, home / f"{_IMAGES}.zip"
    try:
        if folder.is_dir():
            with os.scandir(folder) as entries:
                return _IMAGES, {each.name: each.stat().st_size for each in entries if _is_image(each.name)}
        with ZipFile(archive) as opened:
            members = [each for each in opened.infolist() if _is_image(each.filename)]
    except (OSError, BadZipFile) as cause:
        reason = getattr(cause, "strerror", None) or str(cause)
        raise DataError(f"{home}: neither {_IMAGES}/ nor {_IMAGES}.zip can be read ({reason})") from cause
    return f"{archive.name}/{_IMAGES}", {Path(each.filename).name: each.file_size for each in members}


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _require_match(home: Path, listed: Sequence[str], there: dict[str, int]) -> None:
    if missing := [name for name in listed if name not in there]:
        raise DataError(
            f"{home}: {len(missing)} of the {len(listed)} listed images are missing, {missing[0]} for one; unpack again"
        )
    if unlisted := sorted(there.keys() - set(listed)):
        raise DataError(f"{home}: {len(unlisted)} images are not in {_ATTRIBUTES}, {unlisted[0]} for one; remove them")


def _is_here(folder: Path) -> bool:
    return (_home(folder) / _ATTRIBUTES).is_file()


def _known(what: str) -> KnownSet:
    return KnownSet(
        description=f"CelebA, 40 labels, {what}: --source FOLDER with {_ATTRIBUTES}",
        classes=_LABELS,
        train_images=162_770,
        image_size="178x218",
        read=read_celeba,
        train=_ORIGINAL,
        val=_ORIGINAL,
        has_layout=_is_here,
    )


SETS = {"celeba": _known("validation part"), "celeba_test": _known("test part as val")}
