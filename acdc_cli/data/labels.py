"""What the targets of a data set mean: the number of a class, a bit for each of several labels, tokens, or a score.

An image's target is one int64 that is not negative, as FFCV's IntField stores it. Scores are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Kind = Literal["class", "bits", "tokens", "score"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MOST_BITS = 63
"""The sign of an int64 is not used."""


@dataclass(frozen=True)
class Labels:
    """The classes or labels of a data set."""

    names: tuple[str, ...]
    kind: Kind = "class"

    @property
    def word(self) -> str:
        return {"class": "classes", "bits": "labels", "tokens": "tokens", "score": "scores"}[self.kind]

    def counts(self, targets: NDArray[np.int64]) -> tuple[int, ...]:
        """Images of each class, or with each label."""
        if self.kind == "class":
            return tuple(np.bincount(targets, minlength=len(self.names)).tolist())
        return tuple(int((targets >> bit & 1).sum()) for bit in range(len(self.names)))

    def unknown(self, targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of targets that mean no class, or have a bit of no label."""
        beyond = targets >= len(self.names) if self.kind == "class" else targets >> len(self.names) != 0
        return np.flatnonzero(beyond)


def packed(rows: NDArray[np.bool_] | Sequence[Sequence[bool]]) -> NDArray[np.int64]:
    """(samples, labels) to (samples,): the bits of each sample, the first label's lowest."""
    bits = np.asarray(rows, np.int64)
    assert bits.shape[1] <= MOST_BITS, f"{bits.shape[1]} labels do not fit in {MOST_BITS} bits"
    return np.asarray((bits << np.arange(bits.shape[1])).sum(axis=1), np.int64)


def unpacked(targets: NDArray[np.int64], labels: int) -> NDArray[np.bool_]:
    """(samples,) to (samples, labels)."""
    return (targets[:, None] >> np.arange(labels) & 1).astype(np.bool_)
