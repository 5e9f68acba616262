"""Several real digits in one picture, labelled with those that occur: a multi-label set that needs no download.

Made from the demo's MNIST digits: each quarter of a picture holds one of them, at half its size, or nothing. Training
pictures show training digits only, validation pictures validation digits only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acdc_cli.data.known_sets import KnownSet, array_source
from acdc_cli.data.labels import packed
from acdc_cli.data.sets.demo_digits import digits
from acdc_cli.data.write_beton import Source

_PICTURES = {"train": 4_000, "val": 1_000}
_SEED = 20_231_015
_QUARTERS = 4
_EMPTY = 64
"""Average number of empty quarters in 256."""
_SIDE = 28


def pictures(split: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """(pictures, 28, 28, 3) pixels and (pictures, 10): whether each digit occurs. Always the same."""
    small, classes = _halved(split)
    count = _PICTURES[split]
    # raw words, because only these are the same in every version of NumPy
    stream = np.random.Philox(key=np.array([_SEED, list(_PICTURES).index(split)], np.uint64))
    shape = (count, _QUARTERS)
    chosen = (stream.random_raw(count * _QUARTERS) % np.uint64(len(small))).astype(np.int64).reshape(shape)
    filled = (stream.random_raw(count * _QUARTERS) % np.uint64(256) >= _EMPTY).reshape(shape)
    # no picture is empty
    filled[~filled.any(axis=1), 0] = True
    cells = np.where(filled[:, :, None, None, None], small[chosen], 0)
    rows = [np.concatenate([cells[:, 2 * row], cells[:, 2 * row + 1]], axis=2) for row in (0, 1)]
    occurs = np.zeros((count, 10), np.bool_)
    for quarter in range(_QUARTERS):
        occurs[np.arange(count), classes[chosen[:, quarter]]] |= filled[:, quarter]
    return np.concatenate(rows, axis=1).astype(np.uint8), occurs


def _halved(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The demo's digits at 14 pixels, each the mean of four, and their classes."""
    pixels, classes = digits(split)
    half = _SIDE // 2
    means = pixels.reshape(len(pixels), half, 2, half, 2, 3).mean(axis=(2, 4))
    return np.rint(means).astype(np.uint8), classes


def read_multidigits(name: str, split: str, root: Path | None, download: bool) -> Source:
    pixels, occurs = pictures(split)
    return array_source(name, split, pixels, packed(occurs), tuple("0123456789"), "bits")


SETS = {
    "multidigits": KnownSet(
        description="Up to four of the demo's digits in a picture, labels: which occur; not downloaded",
        classes=10,
        train_images=_PICTURES["train"],
        image_size=f"{_SIDE}x{_SIDE}",
        read=read_multidigits,
    )
}
