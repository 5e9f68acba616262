"""The contract of loaders: batches of an epoch that depend on (seed, epoch, step) alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acdc_cli.data.augment import Augmentation, Crop, times_of
from acdc_cli.data.finish import Finish
from acdc_cli.data.order import epoch_order, repeated, spread
from acdc_cli.data.shard import UNDIVIDED, Shard


@dataclass(frozen=True)
class Batch:
    """Valid until the next batch is requested: the storage may be reused."""

    inputs: Tensor
    """(batch, …) on the loader's device, as the kind of inputs has them (`data/inputs`). Images: (batch, 3, height,
    width), uint8, channels_last; float32 from 0 to 255 if mixed."""
    targets: Tensor
    """(batch, …) on the loader's device, as the task takes them. Labels of images: (batch,), int64; (batch, outputs),
    float32 if mixed: the share of each."""
    indices: Tensor
    """(batch,), int64, on the CPU: the samples' positions in the data set."""


class Loader(Protocol):
    """A split of a data set. Training loaders shuffle, augment and drop the last partial batch;
    validation loaders give every image once, in the set's order. Each rank has its `Shard`."""

    @property
    def kind(self) -> str:
        """The implementation: ffcv, torch or text."""

    @property
    def steps(self) -> int:
        """Batches in an epoch; in training, the same number on every rank."""

    @property
    def samples(self) -> int:
        """Images in the split, over all ranks."""

    def epoch(self, epoch: int, start_step: int = 0) -> AbstractContextManager[Iterator[Batch]]:
        """The batches of an epoch of the run from `start_step` on; leaving the context early is safe.

        Only one epoch of a loader may be open at a time. Raises DataError when an image cannot be decoded.
        """

    def prepare(self, epoch: int) -> None:
        """Begin to draw the first batches of an epoch in the background; call it between epochs only.

        The next `epoch` uses them if it is that epoch and starts at step 0; any other call, or `close`, drops them.
        Batches do not depend on it; `epoch` or its batches raise what fails here.
        """

    def warm_up(self) -> None:
        """Compile and allocate now, so that the first epoch need not wait."""

    def close(self) -> None: ...


class Picks(NamedTuple):
    """The samples of a batch."""

    indices: NDArray[np.int64]
    """Positions in the data set."""
    times: NDArray[np.int64]
    """The epoch and repetition that each is drawn for, from `augment.times_of`."""


@dataclass(frozen=True)
class Plan:
    """How a split is read: all settings of a loader except the location of its images and its device."""

    batch_size: int
    """In training, over all ranks, whose number divides it."""
    size: Callable[[int], int]
    """Side of the images in an epoch, in pixels."""
    crop: Crop
    flip: float = 0.0
    """Probability of a horizontal flip."""
    seed: int = 0
    shuffle: bool = False
    """For training: shuffled anew every epoch, in whole batches only."""
    images: int | None = None
    """Use this many images only, evenly spread over the set; None: all."""
    only: NDArray[np.int64] | None = None
    """Use the images at these positions only, in this order, instead of `images`."""
    relabelled: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    """Positions in the data set, and the labels of the images there instead of the stored ones."""
    shard: Shard = UNDIVIDED
    bicubic: bool = False
    """Whether CENTRED images are resized bicubically, not bilinearly; FFCV's loader cannot."""
    finish: Finish | None = None
    """What is done to each crop after its flip."""
    repeats: int = 1
    """In training, versions of an image in a batch."""

    def samples(self, stored: int) -> int:
        """Number of images that are used, of so many in the set."""
        return min(stored, self.images or stored) if self.only is None else len(self.only)

    def labels(self, stored: NDArray[np.int64]) -> NDArray[np.int64]:
        """The labels of the whole set, given those that are stored."""
        if self.relabelled is None:
            return stored
        positions, labels = self.relabelled
        changed = stored.copy()
        changed[positions] = labels
        return changed

    @property
    def largest_batch(self) -> int:
        """Images in a batch of this rank."""
        return self.batch_size // self.shard.size if self.shuffle else self.batch_size

    def steps(self, stored: int) -> int:
        return len(self._starts(self.samples(stored)))

    def batches(self, stored: int, epoch: int, start_step: int) -> list[Picks]:
        """This process's batches, from `start_step` on."""
        order = self.used(stored)
        repetition = np.zeros_like(order)
        if self.shuffle:
            order = order[epoch_order(len(order), self.seed, epoch)]
        if self.repeats > 1:
            places, repetition = repeated(len(order), self.repeats, self.batch_size)
            order = order[places]
        times, size = times_of(epoch, repetition), self.largest_batch
        starts = self._starts(len(order))[start_step:]
        return [Picks(order[start : start + size], times[start : start + size]) for start in starts]

    def used(self, stored: int) -> NDArray[np.int64]:
        """Positions in the data set of all images of the split that are used, in the set's order or that of `only`."""
        return spread(self.samples(stored), stored) if self.only is None else self.only

    def _starts(self, used: int) -> range:
        """The start of each batch of this rank, in the epoch's order."""
        if self.shuffle:
            first = self.shard.rank * self.largest_batch
            return range(first, used // self.batch_size * self.batch_size, self.batch_size)
        return range(self.shard.rank * self.batch_size, used, self.shard.size * self.batch_size)

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(self.crop, self.flip, self.seed)


class Transfer:
    """Brings batches to the device, on a stream of its own so that the copy runs beside the training step."""

    def __init__(self, device: torch.device) -> None:
        if device.type == "cuda" and device.index is None:
            # another thread's current device may be another one
            device = torch.device("cuda", torch.cuda.current_device())
        self.device = device
        self.pinned = device.type == "cuda"
        """Whether images should lie in page-locked memory: only from there are copies asynchronous."""
        self._stream = torch.cuda.Stream(device) if self.pinned else None  # type: ignore[no-untyped-call]

    def begin_thread(self) -> None:
        """Call this first in every thread that copies: otherwise CUDA would create a context on the first device, which
        may belong to another rank."""
        if self.pinned:
            torch.cuda.set_device(self.device)

    def __call__(self, images: Tensor, labels: Tensor, indices: Tensor) -> Batch:
        """images: (batch, height, width, 3). Returns when the copy is made, so that `images` may be overwritten."""
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                images = images.to(self.device, non_blocking=True)
                labels = labels.to(self.device, non_blocking=True)
            self._stream.synchronize()
        return Batch(images.permute(0, 3, 1, 2), labels, indices)

    def hand_over(self, batch: Batch) -> Batch:
        """Call this before using the batch, on the stream that uses it."""
        if self._stream is not None:
            # else its memory, which belongs to the copying stream, could be given away while this one still reads it
            stream = torch.cuda.current_stream(self.device)
            batch.inputs.record_stream(stream)
            batch.targets.record_stream(stream)
        return batch


def moved(values: NDArray[Any], device: torch.device) -> Tensor:
    """A small array on the device; the host does not wait for the copy."""
    tensor = torch.from_numpy(values)
    # only from page-locked memory does the copy not make it wait
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
