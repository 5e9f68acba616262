"""Training labels that are wrong on purpose, to see what a model memorises (P1, Section 4 "Output Analysis")."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acdc_cli import files
from acdc_cli.errors import DataError

_NO_EPOCH = 2**64 - 1
"""Second word of the key, where orders have the epoch: these draws are independent of all orders."""


@dataclass(frozen=True)
class CorruptedLabels:
    """The samples with a corrupted label, in the set's order; arrays of (count,)."""

    indices: NDArray[np.int64]
    """Positions in the data set."""
    true: NDArray[np.int64]
    """Their true classes."""
    given: NDArray[np.int64]
    """The classes that training uses."""

    def csv(self) -> str:
        rows = zip(self.indices.tolist(), self.true.tolist(), self.given.tolist(), strict=True)
        return files.csv_text([("index", "true", "given"), *rows])


def check(count: int, samples: int, classes: int) -> None:
    """Raises DataError if that many samples cannot get another class."""
    if count > samples:
        raise DataError(f"data.corrupt_labels.count: expected at most the {samples:,} training images, found {count:,}")
    if classes < 2:
        raise DataError("data.corrupt_labels: the set has one class only, so no label can be wrong; remove it")


def corrupt(
    labels: NDArray[np.int64], used: NDArray[np.int64], classes: int, count: int, seed: int, among_all: bool = False
) -> CorruptedLabels:
    """`count` of the samples at the positions `used`, each with a class drawn from all but its own, all equally likely.

    labels: of the whole set, each below `classes`.  among_all: a sample's own class is as likely as the others.
    Raises DataError as `check` does.
    """
    check(count, len(used), classes)
    # raw words, because only these are the same in every version of NumPy
    stream = np.random.Philox(key=np.array([seed, _NO_EPOCH], np.uint64))
    ranks = stream.random_raw(len(used))
    indices = np.sort(used[np.argsort(ranks, kind="stable")[:count]])
    fewest = 0 if among_all else 1
    shifts = fewest + (stream.random_raw(count) % np.uint64(classes - fewest)).astype(np.int64)
    return CorruptedLabels(indices, labels[indices], (labels[indices] + shifts) % classes)
