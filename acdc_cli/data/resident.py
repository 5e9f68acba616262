"""The loader of small sets whose crops are not resized: all images stay on the device, and batches are cut there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from acdc_cli.data import augment
from acdc_cli.data.batches import Batch, Picks, Plan
from acdc_cli.data.beton import BetonFile

SMALL = 256 << 20
"""Most bytes of pixels of a split that is kept in memory, on the device or the host."""
_DRAWN_AT_ONCE = 8192
"""Fewest samples drawn in one call: enough to hide NumPy's overhead, and less than a whole epoch."""


def can_stay(file: BetonFile, plan: Plan, sizes: Iterable[int]) -> bool:
    """Whether the used images fit on the device, and crops of all these sizes need no resizing and no `finish`."""
    height, width = (int(side) for side in file.sizes[0])
    border = 2 * augment.padding_of(plan.crop)
    return (
        plan.finish is None
        and bool((file.sizes == file.sizes[0]).all())
        and 3 * plan.samples(len(file)) * (height + border) * (width + border) <= SMALL
        and all(augment.only_shifts(plan.crop, height, width, size) for size in sizes)
    )


class ResidentLoader:
    """`batches.Loader` of a .beton file for which `can_stay` holds. Its pixels are those of `torch.TorchLoader`.

    Nothing is drawn ahead: a batch costs the host a few calls, and the host never waits for the device.
    Raises DataError if an image cannot be decoded.
    """

    kind: Literal["torch"] = "torch"

    def __init__(self, file: BetonFile, plan: Plan, device: torch.device) -> None:
        self._plan = plan
        self._device = device
        self._stored = len(file)
        self._height, self._width = (int(side) for side in file.sizes[0])
        used, border = plan.used(self._stored), augment.padding_of(plan.crop)
        self._slots = np.zeros(self._stored, np.int64)
        self._slots[used] = np.arange(len(used))
        padded = np.zeros((len(used), self._height + 2 * border, self._width + 2 * border, 3), np.uint8)
        inner = padded[:, border : border + self._height, border : border + self._width]
        for image, index in zip(inner, used.tolist(), strict=True):
            image[:] = file.decode(index)
        self._padded = torch.from_numpy(padded).to(device)
        self._labels = torch.from_numpy(plan.labels(file.labels)[used]).to(device)

    @property
    def samples(self) -> int:
        return self._plan.samples(self._stored)

    @property
    def steps(self) -> int:
        return self._plan.steps(self._stored)

    def prepare(self, epoch: int) -> None:
        """Nothing: the first batch takes a thousandth of a second."""

    def warm_up(self) -> None:
        pass

    def close(self) -> None:
        self._padded = self._padded.new_empty(0)

    @contextmanager
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Iterator[Batch]]:
        size = self._plan.size(epoch)
        augment.require_room(self._plan.crop, min(self._height, self._width), size)
        assert augment.only_shifts(self._plan.crop, self._height, self._width, size), "crops of this size are resized"
        yield self._batches(self._plan.batches(self._stored, epoch, start_step), size)

    def _batches(self, batches: Sequence[Picks], size: int) -> Iterator[Batch]:
        together = -(-_DRAWN_AT_ONCE // self._plan.largest_batch)
        for first in range(0, len(batches), together):
            some = batches[first : first + together]
            indices, times = (np.concatenate(each) for each in zip(*some, strict=True))
            drawn = augment.shifts(self._plan.augmentation, times, indices, self._height, self._width, size)
            places = torch.from_numpy(np.stack([self._slots[indices], *drawn]))
            if self._device.type == "cuda":
                # only from page-locked memory does the copy not make the host wait
                places = places.pin_memory().to(self._device, non_blocking=True)
            for (positions, _), here in zip(
                some, torch.split(places, [len(batch.indices) for batch in some], 1), strict=True
            ):
                images = (cut if here.is_cuda else cut_on_host)(self._padded, here, size)
                yield Batch(images.permute(0, 3, 1, 2), self._labels[here[0]], torch.from_numpy(positions))


def cut(padded: Tensor, places: Tensor, size: int) -> Tensor:
    """Crops of `size` from images that lie on the same device.

    padded: (images, height, width, 3).  places: (4, batch), int64: image, top, left, and 1 where it is mirrored.
    Returns (batch, size, size, 3).
    """
    images, height, width, _ = padded.shape
    places_down, places_across = height - size + 1, width - size + 1
    windows = padded.as_strided(
        (images, places_down, places_across, size, size, 3),
        (3 * height * width, 3 * width, 3, 3 * width, 3, 1),
    )
    image, top, left, mirrored = places
    crops = windows[image, top, left]
    return torch.where(mirrored.bool()[:, None, None, None], crops.flip(2), crops)


def cut_on_host(padded: Tensor, places: Tensor, size: int) -> Tensor:
    """The same result as `cut`, in a quarter of the time on the CPU: images are copied as a whole, not byte by
    byte."""
    (_, height, width, _), bytes_per_crop = padded.shape, 3 * size * size
    image, top, left, mirrored = places.numpy()
    # from a crop's first pixel to its last, with what lies between its rows
    span = 3 * ((size - 1) * width + size)
    spans = np.ndarray((padded.numel() - span) // 3 + 1, f"V{span}", padded.numpy(), strides=(3,))
    # those that are to be mirrored last
    order = np.argsort(mirrored, kind="stable")
    taken = torch.from_numpy(spans[((image * height + top) * width + left)[order]].view(np.uint8))
    crops = taken.as_strided((len(order), size, size, 3), (span, 3 * width, 3, 1))
    plain = len(order) - int(mirrored.sum())
    crops = torch.cat([crops[:plain], crops[plain:].flip(2)])
    whole = crops.numpy().reshape(-1).view(f"V{bytes_per_crop}")[np.argsort(order)]
    return torch.from_numpy(whole.view(np.uint8)).view(-1, size, size, 3)
