"""Sets that only test models of another set's classes, such as ImageNet-V2, -R, -A and -Sketch, as they are published:
a folder that holds the class folders themselves, without train and val."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from acdc_cli.errors import DataError

NAMES = ("imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch")
_CLASS = re.compile(r"n\d{8}|\d+")
"""A class of ImageNet by its WordNet number (n01440764), or any by its index in the model's classes (ImageNet-V2)."""
_SHOWN = 3


def holds_classes(folder: Path) -> bool:
    """Whether all folders in this one are such classes, and there is at least one."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return False
    return bool(names) and all(map(_CLASS.fullmatch, names))


def indices(classes: Sequence[str], of_model: Sequence[str] | None, outputs: int, where: object) -> list[int]:
    """The model's output for each class of the set.

    of_model: the names of the model's classes in order, None if unknown: 1000 outputs are then ImageNet's.
    Raises DataError if a class is none of the model's.
    """
    if of_model is None and outputs == 1000:
        # imported here because it takes seconds
        from timm.data import ImageNetInfo

        of_model = ImageNetInfo("imagenet-1k").label_names()
    index = {name: number for number, name in enumerate(of_model or ())}
    if all(map(str.isdecimal, classes)) and not set(classes) <= index.keys():
        # by number, whatever the classes are called
        index = {str(number): number for number in range(outputs)}
    if unknown := [name for name in classes if name not in index]:
        more = ", …" if unknown[_SHOWN:] else ""
        raise DataError(
            f"{where}: {len(unknown)} of its {len(classes)} classes are none of the model's {outputs}: "
            f"{', '.join(unknown[:_SHOWN])}{more}; name a set of the model's classes with --data"
        )
    return [index[name] for name in classes]
