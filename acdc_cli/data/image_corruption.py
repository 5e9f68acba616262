"""The 19 corruptions of ImageNet-C, applied to any images (Hendrycks and Dietterich, arXiv 1903.12261).

It does not import torch, so that the processes that corrupt images start fast.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from acdc_cli.data import worker
from acdc_cli.errors import DataError

Pixels = NDArray[np.uint8]
"""(batch, height, width, 3), RGB."""
Make = Callable[[], Pixels]
Group = Literal["noise", "blur", "weather", "digital", "extra"]
Corruption = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
    "speckle_noise",
    "gaussian_blur",
    "spatter",
    "saturate",
]

CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
COMMON = CORRUPTIONS[:15]
"""The corruptions of the mean corruption error; the other four are extra."""
GROUPS: dict[Group, tuple[Corruption, ...]] = {
    "noise": CORRUPTIONS[:3],
    "blur": CORRUPTIONS[3:7],
    "weather": CORRUPTIONS[7:11],
    "digital": CORRUPTIONS[11:15],
    "extra": CORRUPTIONS[15:],
}
SIDE = 224
"""Side of ImageNet-C's images, in pixels, for which the severities are defined."""
SMALLEST_SIDE = 32
"""Smallest side that the library accepts, in pixels."""
_SEEDED_APART = ("glass_blur", "impulse_noise")


def corrupt(images: Pixels, indices: Sequence[int], corruption: Corruption, severity: int, seed: int) -> Pixels:
    """Each image as a function of itself, its index, the severity (1 to 5) and the seed, whatever else is in the batch.

    Images smaller than the library accepts are mirrored at their edges, corrupted and cut back.
    Raises DataError if the library is missing.
    """
    made = np.empty_like(images)
    for position, index in enumerate(indices):
        words = np.random.SeedSequence([seed, CORRUPTIONS.index(corruption), severity, index]).generate_state(1)
        made[position] = _corrupted(images[position], corruption, severity, int(words[0]))
    return made


def _corrupted(image: Pixels, corruption: Corruption, severity: int, seed: int) -> Pixels:
    height, width, _ = image.shape
    rows, columns = _margins(height), _margins(width)
    padded = np.pad(image, (rows, columns, (0, 0)), mode="symmetric")
    options = {"seed": seed} if corruption in _SEEDED_APART else {}
    with _global_seed(seed), np.errstate(invalid="raise"):
        try:
            made: Pixels = _library().corrupt(padded, severity, corruption, **options)
        except FloatingPointError:
            # the largest drop is divided by, and on a small image may fall none
            if corruption != "spatter":
                raise
            made = padded
    return made[rows[0] : rows[0] + height, columns[0] : columns[0] + width]


def _margins(side: int) -> tuple[int, int]:
    missing = max(0, SMALLEST_SIDE - side)
    return missing // 2, missing - missing // 2


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seeds NumPy's global generator, from which the library draws, and restores it afterwards."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _library() -> Any:
    try:
        # here, because it takes two seconds
        import imagecorruptions
    except (ImportError, OSError) as cause:
        raise DataError(
            f"the package that corrupts images cannot be used ({cause}): pip install 'acdc-cli[corruptions]'; on "
            "Debian its OpenCV needs: apt-get install libgl1 libglib2.0-0. Or name the folders of ImageNet-C: "
            "--set path=FOLDER"
        ) from cause
    return imagecorruptions


class Corrupter:
    """Makes corrupted images in processes of its own; the images do not depend on their number."""

    def __init__(self, seed: int = 0, workers: int | None = None) -> None:
        """workers: processes; None: one per core; 0: in this process.  Raises DataError if the library is missing."""
        _library()
        self._seed = seed
        self._workers = len(os.sched_getaffinity(0)) if workers is None else workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self._workers:
            # fork would copy the threads' locks of whatever is imported here
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, context, initializer=_begin)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def begin(self, images: Pixels, indices: Sequence[int], corruption: Corruption, severity: int) -> Make:
        """Starts on a batch, and returns a function that waits for it. `images` is read until then.

        Waiting raises DataError if a process ended.
        """
        if self._pool is None:
            return partial(corrupt, images, indices, corruption, severity, self._seed)
        parts = [part for part in np.array_split(np.arange(len(indices)), self._workers) if len(part)]
        try:
            futures = [
                self._pool.submit(
                    corrupt, images[part], [indices[each] for each in part], corruption, severity, self._seed
                )
                for part in parts
            ]
        except BrokenProcessPool as cause:
            raise _process_ended(cause) from cause

        def wait() -> Pixels:
            try:
                return np.concatenate([future.result() for future in futures])
            except BrokenProcessPool as cause:
                raise _process_ended(cause) from cause

        return wait


def _process_ended(cause: BaseException) -> DataError:
    return DataError(f"a process that corrupts images ended ({cause}). Memory probably ran out: --set workers=1")


def _begin() -> None:
    worker.begin()
    import cv2

    # the processes share the cores
    cv2.setNumThreads(1)
