"""Crops and flips as pure functions of (seed, epoch, sample index).

Python, numba (which compiles them for the FFCV loader, `ffcv.py`) and, except for random resized crops, NumPy arrays
(`shifts`) share these functions and get the same integers from them. So they are plain arithmetic on ints and floats,
and call only `math` and one another.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from acdc_cli.errors import DataError

RANDOM_RESIZED, PADDED, WHOLE, CENTRED = range(4)
_WORD = 0xFFFFFFFF
_CROP_DRAWS, _FLIP_DRAWS = range(2)
_ATTEMPTS = 10
_EPOCH_BITS = 20
"""A run has at most a million epochs."""

Box = tuple[int, int, int, int]
"""(top, left, height, width) in pixels of the stored image; what lies outside the image is black."""


class Crop(NamedTuple):
    """How the box of an image is drawn. A named tuple of numbers, because numba takes it as it is."""

    kind: int
    """RANDOM_RESIZED, PADDED, WHOLE (the largest square in the middle) or CENTRED (for validation)."""
    scale_low: float = 0.08
    scale_high: float = 1.0
    """Share of the image's area in a random resized crop, from `scale_low` to `scale_high`."""
    ratio_low: float = 3 / 4
    ratio_high: float = 4 / 3
    """Width / height of a random resized crop."""
    padding: int = 4
    """Black pixels on each side, for PADDED."""
    share: float = 1.0
    """Side of a CENTRED box in shorter sides of the image: `val_crop / val_resize`."""


class Augmentation(NamedTuple):
    """All that a drawn image depends on, besides its sample index, the epoch and the resolution."""

    crop: Crop
    flip: float
    """Probability of a horizontal flip."""
    seed: int


def times_of(epoch: int, repetition: NDArray[np.int64]) -> NDArray[np.int64]:
    """The epoch, and above it the repetition of an image in it: what the functions below take for the epoch, so that
    each repetition is drawn on its own."""
    return epoch + (repetition << _EPOCH_BITS)


def philox(index: int, epoch: int, block: int, purpose: int, seed: int) -> tuple[int, int, int, int]:
    """Four random words of 32 bits: Philox4x32-10 with the counter (index, epoch, block, purpose) and the key `seed`.

    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011). Another counter or key gives other words.
    Compiled, the products wrap around at 64 bits, which does not change the bits that are used here.
    """
    key_low, key_high = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        first = index * 0xD2511F53
        second = block * 0xCD9E8D57
        index = ((second >> 32) & _WORD) ^ epoch ^ key_low
        epoch = second & _WORD
        block = ((first >> 32) & _WORD) ^ purpose ^ key_high
        purpose = first & _WORD
        key_low = (key_low + 0x9E3779B9) & _WORD
        key_high = (key_high + 0xBB67AE85) & _WORD
    return index, epoch, block, purpose


def uniform(word: int, low: float, high: float) -> float:
    return low + (high - low) * (word / 4294967296.0)


def below(word: int, count: int) -> int:
    """A number in range(count)."""
    return (word * count) >> 32


def nearest(value: float) -> int:
    """Rounds halves up: `round` rounds them to even in Python, but not always when compiled."""
    return math.floor(value + 0.5)


def random_resized_box(crop: Crop, seed: int, epoch: int, index: int, height: int, width: int) -> Box:
    """Random area and aspect ratio, as torchvision's RandomResizedCrop draws them: after ten boxes that do not fit,
    the largest one in the middle whose aspect ratio is allowed."""
    area = float(height * width)
    log_low, log_high = math.log(crop.ratio_low), math.log(crop.ratio_high)
    for attempt in range(_ATTEMPTS):
        scale, ratio, vertical, horizontal = philox(index, epoch, attempt, _CROP_DRAWS, seed)
        box_area = area * uniform(scale, crop.scale_low, crop.scale_high)
        aspect = math.exp(uniform(ratio, log_low, log_high))
        box_width = nearest(math.sqrt(box_area * aspect))
        box_height = nearest(math.sqrt(box_area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = below(vertical, height - box_height + 1)
            left = below(horizontal, width - box_width + 1)
            return top, left, box_height, box_width
    box_height, box_width = height, width
    if width < crop.ratio_low * height:
        box_height = max(1, nearest(width / crop.ratio_low))
    elif width > crop.ratio_high * height:
        box_width = max(1, nearest(height * crop.ratio_high))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def padded_box(crop: Crop, seed: int, epoch: int, index: int, height: int, width: int, size: int) -> Box:
    """A square of `size` anywhere in the padded image, as on CIFAR. The image must be that large: `require_room`."""
    vertical, horizontal, _, _ = philox(index, epoch, 0, _CROP_DRAWS, seed)
    top = below(vertical, height + 2 * crop.padding - size + 1) - crop.padding
    left = below(horizontal, width + 2 * crop.padding - size + 1) - crop.padding
    return top, left, size, size


def centred_box(share: float, height: int, width: int) -> Box:
    side = max(1, nearest(min(height, width) * share))
    return (height - side) // 2, (width - side) // 2, side, side


def crop_box(crop: Crop, seed: int, epoch: int, index: int, height: int, width: int, size: int) -> Box:
    """The box of sample `index` in this epoch; it is then resized to a square of `size`."""
    if crop.kind == RANDOM_RESIZED:
        return random_resized_box(crop, seed, epoch, index, height, width)
    if crop.kind == PADDED:
        return padded_box(crop, seed, epoch, index, height, width, size)
    if crop.kind == WHOLE:
        return centred_box(1.0, height, width)
    return centred_box(crop.share, height, width)


def is_flipped(probability: float, seed: int, epoch: int, index: int) -> bool:
    """Whether the sample is mirrored left to right in this epoch."""
    word, _, _, _ = philox(index, epoch, 0, _FLIP_DRAWS, seed)
    return word / 4294967296.0 < probability


def only_shifts(crop: Crop, height: int, width: int, size: int) -> bool:
    """Whether crops of `size` are cut from the image and the black around it without resizing."""
    if crop.kind == PADDED:
        return True
    return crop.kind in (WHOLE, CENTRED) and height == width == size == nearest(size / crop.share)


class Shifts(NamedTuple):
    """Crops of many samples that need no resizing."""

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    """Corners of the crops in the padded images: none is negative."""
    flipped: NDArray[np.bool_]


def shifts(
    augmentation: Augmentation,
    times: NDArray[np.int64] | int,
    indices: NDArray[np.int64],
    height: int,
    width: int,
    size: int,
) -> Shifts:
    """`crop_box` and `is_flipped` of all samples at `indices`, of images of one size, drawn at once.

    The same functions draw them: each word of Philox is an array here, and integers of 64 bits hold every product.
    """
    crop, flip, seed = augmentation
    words: Any = indices.astype(np.uint64)
    epoch: Any = np.asarray(times).astype(np.uint64)
    corners = crop_box(crop, seed, epoch, words, height, width, size)[:2]
    # corners left of or above the image have wrapped around, and wrap back
    top, left = (np.broadcast_to(corner + padding_of(crop), words.shape).astype(np.int64) for corner in corners)
    return Shifts(top, left, np.asarray(is_flipped(flip, seed, epoch, words)))


def padding_of(crop: Crop) -> int:
    """Black pixels that crops may show on each side of an image."""
    return crop.padding if crop.kind == PADDED else 0


def require_room(crop: Crop, shorter_side: int, size: int) -> None:
    """Raises DataError if an image is too small for crops of `size`."""
    if crop.kind == PADDED and shorter_side + 2 * crop.padding < size:
        raise DataError(
            f"an image's shorter side is {shorter_side} pixels: with data.padding {crop.padding} no crop of "
            f"{size} fits. Lower data.resolution, or use data.augment: random_resized_crop."
        )


COMPILED = (philox, uniform, below, nearest, random_resized_box, padded_box, centred_box, crop_box, is_flipped)
"""The functions that the FFCV loader compiles."""
