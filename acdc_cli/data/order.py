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


def repeated(samples: int, repeats: int, batch_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Repeated augmentation (arXiv 1901.09335, 1902.05509): each of the first images `repeats` times in one batch.

    Returns (samples,) positions in the epoch's order, and which repetition of its image each is. Within a batch the
    first repetitions of all images come first, then the second: equal parts of it, such as those of ranks, then hold
    different images, and so do neighbours, which mixup and cutmix mix.
    """
    places = np.arange(samples)
    whole = samples // batch_size * batch_size
    repetition = places % repeats
    order = np.argsort(repetition[:whole].reshape(-1, batch_size), axis=1, kind="stable")
    places[:whole] = (order + np.arange(0, whole, batch_size)[:, None]).ravel()
    return places // repeats, repetition[places]


def spread(used: int, stored: int) -> NDArray[np.int64]:
    """Positions of `used` samples, evenly spread over the set, because sets are often stored class by class."""
    return np.arange(used) * stored // used
