"""The torchvision loader: .beton files and image folders, drawn by worker processes or, when small, from memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Literal, Never, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms.v2 import functional

from acdc_cli.data import worker
from acdc_cli.data.augment import CENTRED, Augmentation, crop_box, is_flipped, nearest, require_room
from acdc_cli.data.batches import Batch, Picks, Plan, Transfer
from acdc_cli.data.beton import BetonFile
from acdc_cli.data.finish import Finish
from acdc_cli.data.image_file import read_image
from acdc_cli.data.resident import SMALL
from acdc_cli.data.write_beton import Source
from acdc_cli.errors import DataError

_LOST = (RuntimeError, EOFError, ConnectionError, FileNotFoundError)
"""Errors of a worker that has ended; the last three occur while a batch is taken from it."""


class Images(Protocol):
    """A split that can be sent to another process: a `BetonFile`, or one of the following."""

    @property
    def labels(self) -> NDArray[np.int64]: ...

    def decode(self, index: int) -> NDArray[np.uint8]:
        """(height, width, 3), RGB. Raises DataError when the image cannot be decoded."""

    def will_need(self, indices: NDArray[np.int64]) -> None:
        """Announces the images that are decoded next."""


class FolderImages:
    """The images of a folder."""

    def __init__(self, source: Source) -> None:
        self.root = source.root
        # one array, because a million strings are slow to send to a process and large in each
        self.paths = np.array([path.encode(errors="surrogateescape") for path in source.images])
        self.labels = source.labels

    def will_need(self, indices: NDArray[np.int64]) -> None:
        pass

    def decode(self, index: int) -> NDArray[np.uint8]:
        path = self.root / self.paths[index].decode(errors="surrogateescape")
        try:
            return np.array(read_image(path).pixels)
        except ValueError as cause:
            raise DataError(
                f"{path}: the image cannot be read ({cause}). Repair or remove it, or write the set without such "
                "images: `acdc data write … --skip-bad`."
            ) from cause


class MemoryImages:
    """Images decoded once."""

    def __init__(self, images: Images) -> None:
        self.labels = images.labels
        self._decoded = [images.decode(index) for index in range(len(images.labels))]

    def will_need(self, indices: NDArray[np.int64]) -> None:
        pass

    def decode(self, index: int) -> NDArray[np.uint8]:
        return self._decoded[index]


@dataclass(frozen=True)
class Request:
    """A batch to draw."""

    picks: Picks
    size: int


@dataclass(frozen=True)
class Drawer:
    """Draws batches, in this process or in a worker."""

    images: Images
    augmentation: Augmentation
    bicubic: bool = False
    finish: Finish | None = None

    def draw(self, request: Request) -> Tensor:
        """(batch, size, size, 3)"""
        indices, times = request.picks
        self.images.will_need(indices)
        batch = torch.empty(len(indices), request.size, request.size, 3, dtype=torch.uint8)
        for image, index, time in zip(batch, indices.tolist(), times.tolist(), strict=True):
            image.copy_(self._show(index, time, request.size).permute(1, 2, 0))
            if self.finish is not None:
                self.finish(image.numpy(), index, time)
        return batch

    def _show(self, index: int, epoch: int, size: int) -> Tensor:
        crop, flip, seed = self.augmentation
        image = torch.from_numpy(self.images.decode(index)).permute(2, 0, 1)
        height, width = image.shape[1:]
        require_room(crop, min(height, width), size)
        if crop.kind == CENTRED:
            # as published checkpoints are evaluated: the whole image is resized, then cropped
            image = _resized(image, [nearest(size / crop.share)], self.bicubic)
            image = functional.center_crop(image, [size, size])
        else:
            image = functional.crop(image, *crop_box(crop, seed, epoch, index, height, width, size))
            image = _resized(image, [size, size])
        return functional.horizontal_flip(image) if is_flipped(flip, seed, epoch, index) else image


def _resized(image: Tensor, size: Sequence[int], bicubic: bool = False) -> Tensor:
    mode = functional.InterpolationMode.BICUBIC if bicubic else functional.InterpolationMode.BILINEAR
    resized: Tensor = functional.resize(image, size, mode, antialias=True)
    return resized


class _RequestedBatches(Dataset[Tensor | DataError]):
    """The data set of a worker process: a batch for every request."""

    def __init__(self, drawer: Drawer) -> None:
        self._drawer = drawer

    def __getitem__(self, request: Request) -> Tensor | DataError:
        try:
            return self._drawer.draw(request)
        except DataError as error:
            # given back, not raised: a DataLoader would bury its message in the worker's traceback
            return error


class _Requests(Sampler[Request]):
    """The batches of the epoch that is about to begin; workers live on from one epoch to the next."""

    def __init__(self) -> None:
        self.now: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self.now)


@dataclass(frozen=True)
class _Drawing:
    """The batches of an epoch that workers have begun to draw."""

    start: tuple[int, int, int]
    """Epoch, step to begin with, side."""
    requests: list[Request]
    images: Iterator[Tensor | DataError]


class TorchLoader:
    """`batches.Loader` of anything that can be decoded one image at a time.

    workers: processes that draw batches; 0 draws them in this one.
    """

    kind: Literal["torch"] = "torch"

    def __init__(self, images: Images, plan: Plan, workers: int, device: torch.device) -> None:
        self._labels = plan.labels(images.labels)
        self._plan = plan
        self._transfer = Transfer(device)
        self._requests = _Requests()
        self._batches = _RequestedBatches(Drawer(images, plan.augmentation, plan.bicubic, plan.finish))
        self._workers: DataLoader[Tensor | DataError] | None = None
        self._prepared: _Drawing | None = None
        if workers:
            self._workers = self._start_workers(workers)

    def _start_workers(self, workers: int) -> DataLoader[Tensor | DataError]:
        # a fork of this process would inherit its threads' locks and CUDA; a fork of a server that has only loaded this
        # module starts in milliseconds, where `spawn` loads torch in every worker
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        return DataLoader(
            self._batches,
            batch_size=None,
            sampler=self._requests,
            num_workers=workers,
            persistent_workers=True,
            pin_memory=self._transfer.pinned,
            multiprocessing_context=context,
            # a worker of a fork server does not notice by itself that the process it works for is gone
            worker_init_fn=worker.begin,
            # else the workers' seeds are drawn from torch's global generator, whose state belongs to the run
            generator=torch.Generator(),
        )

    @property
    def samples(self) -> int:
        return self._plan.samples(len(self._labels))

    @property
    def steps(self) -> int:
        return self._plan.steps(len(self._labels))

    def warm_up(self) -> None:
        """Starts the workers."""
        if self._workers is not None:
            self._requests.now, self._prepared = [], None
            with _explained():
                iter(self._workers)

    def prepare(self, epoch: int) -> None:
        if self._workers is not None:
            self._prepared = self._begin(epoch, 0, self._plan.size(epoch))

    def close(self) -> None:
        # the workers end with the last reference to their loader
        self._workers = self._prepared = None

    @contextmanager
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Iterator[Batch]]:
        start = (epoch, start_step, self._plan.size(epoch))
        drawing, self._prepared = self._prepared, None
        if drawing is None or drawing.start != start:
            drawing = self._begin(*start)
        # closed, because a generator that is left in the middle holds the workers for as long as it lives
        with closing(self._transferred(drawing)) as drawn:
            if self._transfer.pinned:
                with ThreadPoolExecutor(1, "send", self._transfer.begin_thread) as sending:
                    yield self._one_ahead(drawn, sending)
            else:
                yield drawn

    def _begin(self, epoch: int, start_step: int, size: int) -> _Drawing:
        batches = self._plan.batches(len(self._labels), epoch, start_step)
        requests = [Request(picks, size) for picks in batches]
        images: Iterator[Tensor | DataError]
        if self._workers is None:
            images = (self._batches[request] for request in requests)
        else:
            self._requests.now = requests
            try:
                # workers draw from here on; open requests of an unfinished epoch are dropped
                images = iter(self._workers)
            except _LOST as cause:
                images = _raising(cause)
        return _Drawing((epoch, start_step, size), requests, images)

    def _transferred(self, drawing: _Drawing) -> Generator[Batch]:
        for request, images in zip(drawing.requests, self._drawn(drawing.images), strict=True):
            if isinstance(images, DataError):
                raise images
            indices = request.picks.indices
            yield self._transfer(images, torch.from_numpy(self._labels[indices]), torch.from_numpy(indices))

    def _drawn(self, images: Iterator[Tensor | DataError]) -> Iterator[Tensor | DataError]:
        with _explained():
            yield from images

    def _one_ahead(self, batches: Iterator[Batch], sending: ThreadPoolExecutor) -> Iterator[Batch]:
        """Copies the next batch to the device while this one is used."""
        coming = sending.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = sending.submit(next, batches, None)
            yield self._transfer.hand_over(batch)


@contextmanager
def _explained() -> Iterator[None]:
    """Raises DataError where workers are lost."""
    try:
        yield
    except _LOST as cause:
        if isinstance(cause, RuntimeError) and "exited unexpectedly" not in str(cause):
            raise
        raise DataError(
            f"a process that draws images ended ({cause!r}). Memory probably ran out: lower data.workers."
        ) from cause


def _raising(error: Exception) -> Iterator[Never]:
    """Raises the error at the first `next`."""
    raise error
    yield


def is_small(file: BetonFile) -> bool:
    """Whether the pixels of all images may stay in memory."""
    return 3 * int(file.sizes.prod(axis=1).sum()) <= SMALL
