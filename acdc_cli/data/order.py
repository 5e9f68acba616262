"""The samples of a set that are used, and their order in an epoch, which depends on (seed, epoch) alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def epoch_order(samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of range(samples).

    Seed and epoch are two words of the key, never a sum: with `seed + epoch`, as in FFCV, epoch 0 of seed 1
    would be epoch 1 of seed 0, and the runs of a study would be correlated.
    """
    key = np.array([seed, epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(samples)


def spread(used: int, stored: int) -> NDArray[np.int64]:
    """Positions of `used` samples, evenly spread over the set, because sets are often stored class by class."""
    return np.arange(used) * stored // used
