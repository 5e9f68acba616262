"""Folders of images, one per class, in the order and with the labels of torchvision's ImageFolder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from acdc_cli.data.write_beton import Source
from acdc_cli.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Other files do not belong to an image folder, as in torchvision."""


def folder_source(name: str, split: str, root: Path) -> Source:
    """The images of `root/split/<class>/`. The fingerprint is over their paths and sizes.

    Raises DataError for a class without images, and for a folder that links make part of the split twice.
    """
    folder = root / split
    class_names = class_folders(folder)
    real = folder.resolve()
    seen = {str(above): str(above) for above in (real, *real.parents)}
    paths: list[str] = []
    labels: list[int] = []
    fingerprint = hashlib.sha256()
    for label, class_name in enumerate(class_names):
        images = _images_below(folder / class_name, root, seen)
        if not images:
            raise DataError(f"{folder / class_name}: no images ({', '.join(IMAGE_SUFFIXES)}) in this class's folder")
        for path, size in images:
            fingerprint.update(f"{path}\0{size}\0".encode(errors="surrogateescape"))
            paths.append(path)
            labels.append(label)
    return Source(name, split, paths, np.asarray(labels, np.int64), class_names, fingerprint.hexdigest(), root)


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of the class folders, sorted. Raises DataError if there are none."""
    try:
        with os.scandir(folder) as entries:
            contents = list(entries)
    except OSError as cause:
        raise DataError(
            f"{folder}: {cause.strerror}. The --source folder must hold the images in train/CLASS/ and val/CLASS/."
        ) from cause
    class_names = tuple(sorted(entry.name for entry in contents if entry.is_dir()))
    if not class_names:
        loose = sum(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in contents)
        holds = f"{loose:,} images but no class folders" if loose else "no class folders"
        raise DataError(f"{folder}: holds {holds}. Sort the images into one folder per class, as in train/.")
    return class_names


def _images_below(folder: Path, root: Path, seen: dict[str, str]) -> list[tuple[str, int]]:
    """(path relative to root, bytes) of the images, sorted folder by folder.

    seen: the paths of the split's folders so far, and of those above it, by their real paths; gains those below.
    """
    walked = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        if (first := seen.setdefault(os.path.realpath(parent), parent)) != parent:
            raise DataError(
                f"{parent}: a link makes it the same folder as {first}, so images would be used twice, or without end. "
                "Remove the link, or copy what is meant."
            )
        walked.append((parent, sorted(names)))
    return [
        (os.path.relpath(os.path.join(parent, name), root), _size(os.path.join(parent, name)))
        for parent, names in sorted(walked)
        for name in names
        if name.lower().endswith(IMAGE_SUFFIXES)
    ]


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        # a broken link, say: writing lists it among the unreadable images
        return -1
