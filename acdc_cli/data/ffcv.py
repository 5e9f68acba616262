"""The FFCV loader: .beton files drawn by FFCV's C++ kernels (libturbojpeg decodes, OpenCV resizes) on threads.

This loader uses FFCV's file format and two kernels in a loop of its own. FFCV's loop draws crops that differ from
process to process, compiles every loader anew, hangs when its thread fails, leaks the thread and its buffers when an
epoch is left early, and ignores the decoder's return value.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any, Literal

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acdc_cli.data import augment
from acdc_cli.data import manifest as manifests
from acdc_cli.data.augment import Crop
from acdc_cli.data.batches import Batch, Picks, Plan, Transfer
from acdc_cli.data.beton import MODES, BetonFile
from acdc_cli.errors import DataError

_AHEAD = 3
"""Batches that are drawn while one is used."""
_CHUNK = 32
"""Most images that a thread draws at once; this takes much longer than handing over between threads."""
_JPEG = MODES.index("jpg")


def _kernels() -> tuple[Any, Any]:
    """FFCV's `imdecode` and `resize`. The package itself stays out: importing it takes seconds and resets torch's
    number of threads."""
    package = importlib.util.find_spec("ffcv")
    if package is None or not package.submodule_search_locations:
        raise ImportError("the package ffcv is not installed")
    libraries = sorted(Path(package.submodule_search_locations[0]).glob("_libffcv*"))
    if not libraries:
        raise ImportError("the package ffcv has no compiled kernels")
    library = ctypes.CDLL(str(libraries[0]))
    word, flag = ctypes.c_uint32, ctypes.c_bool
    decode = library.imdecode
    # JPEG, its bytes, height and width, pixels, height, width, row and column of a crop, scale num/denom, crop?, flip?
    decode.argtypes = [ctypes.c_void_p, ctypes.c_uint64, word, word, ctypes.c_void_p, *6 * [word], flag, flag]
    decode.restype = ctypes.c_int
    resize = library.resize
    # unused, pixels, height and width, first and last row and column of the box, result, height and width
    resize.argtypes = 11 * [ctypes.c_int64]
    resize.restype = None
    return decode, resize


def _compiled_augment() -> dict[str, Any]:
    """The functions of `augment`, compiled. Without fast maths, whose results would differ from Python's."""
    namespace = dict(vars(augment))
    for function in augment.COMPILED:
        namespace[function.__name__] = numba.njit(nogil=True)(FunctionType(function.__code__, namespace))
    return namespace


_decode, _resize = _kernels()
_functions = _compiled_augment()
crop_box: Callable[..., augment.Box] = _functions["crop_box"]
is_flipped: Callable[..., bool] = _functions["is_flipped"]


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _place(image: Any, top: int, left: int, height: int, width: int, out: Any) -> None:
    """Writes the box of the image, resized, to `out`. Boxes that reach beyond the image (PADDED) have its size."""
    rows, columns = image.shape[0], image.shape[1]
    if top >= 0 and left >= 0 and top + height <= rows and left + width <= columns:
        source, target = image.ctypes.data, out.ctypes.data
        _resize(0, source, rows, columns, top, top + height, left, left + width, target, out.shape[0], out.shape[1])
        return
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            inside = 0 <= row + top < rows and 0 <= column + left < columns
            for channel in range(3):
                out[row, column, channel] = image[row + top, column + left, channel] if inside else 0


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _mirror(image: Any) -> None:
    last = image.shape[1] - 1
    for row in range(image.shape[0]):
        for column in range(image.shape[1] // 2):
            for channel in range(3):
                left = image[row, column, channel]
                image[row, column, channel] = image[row, last - column, channel]
                image[row, last - column, channel] = left


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _show(image: Any, crop: Crop, flip: float, seed: int, epoch: int, index: int, out: Any) -> None:
    """Crop and flip of sample `index`, whose pixels are `image`."""
    top, left, height, width = crop_box(crop, seed, epoch, index, image.shape[0], image.shape[1], out.shape[0])
    _place(image, top, left, height, width, out)
    if is_flipped(flip, seed, epoch, index):
        _mirror(out)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _draw(
    file: Any,
    starts: Any,
    lengths: Any,
    modes: Any,
    sizes: Any,
    indices: Any,
    crop: Crop,
    flip: float,
    seed: int,
    times: Any,
    scratch: Any,
    out: Any,
) -> int:
    """Fills `out` with the samples at `indices`. Returns the position where a JPEG did not decode, -1 if all did.

    scratch: room for the pixels of the largest JPEG.
    """
    for position in range(len(indices)):
        index, epoch = indices[position], times[position]
        stored = file[starts[index] : starts[index] + lengths[index]]
        height, width = sizes[index, 0], sizes[index, 1]
        if modes[index] == _JPEG:
            source, pixels = stored.ctypes.data, scratch.ctypes.data
            if _decode(source, stored.size, height, width, pixels, height, width, 0, 0, 1, 1, False, False) != 0:
                return position
            image = scratch[: height * width * 3].reshape((height, width, 3))
            _show(image, crop, flip, seed, epoch, index, out[position])
        else:
            _show(stored.reshape((height, width, 3)), crop, flip, seed, epoch, index, out[position])
    return -1


@dataclass(frozen=True)
class _Job:
    """A batch that is being drawn."""

    chunks: list[Future[None]]
    ready: Future[Batch]

    def cancel(self) -> None:
        """Cancels all work that has not begun."""
        self.ready.cancel()
        for chunk in self.chunks:
            chunk.cancel()

    def settle(self) -> None:
        """Waits for work that has begun: it writes into a buffer that the next epoch reuses."""
        wait(self.chunks)
        wait([self.ready])


@dataclass(frozen=True)
class _Epoch:
    """An epoch that is being drawn."""

    request: tuple[int, int, int]
    """Epoch, step to begin with, side."""
    starts: Iterator[_Job]
    jobs: deque[_Job] = field(default_factory=deque)

    def draw_ahead(self, batches: int) -> None:
        self.jobs.extend(itertools.islice(self.starts, batches))

    def stop(self) -> None:
        for job in self.jobs:
            job.cancel()
        for job in self.jobs:
            job.settle()


class FFCVLoader:
    """`batches.Loader` of a .beton file."""

    kind: Literal["ffcv"] = "ffcv"

    def __init__(self, file: BetonFile, plan: Plan, workers: int, device: torch.device) -> None:
        self._file = file
        self._bytes = np.asarray(np.memmap(file.path, np.uint8, mode="r"))
        self._shortest_side = int(file.sizes.min())
        self._labels = plan.labels(file.labels)
        self._plan = plan
        self._transfer = Transfer(device)
        # small batches are divided among all threads
        self._chunk = min(_CHUNK, -(-plan.largest_batch // workers))
        self._drawing = ThreadPoolExecutor(workers, "draw")
        # apart, so that a batch that waits for its images to be drawn keeps no thread from drawing
        self._sending = ThreadPoolExecutor(1, "send", self._transfer.begin_thread)
        self._thread = threading.local()
        self._ring = torch.empty(0)
        self._open = False
        self._prepared: _Epoch | None = None

    @property
    def samples(self) -> int:
        return self._plan.samples(self._file.samples)

    @property
    def steps(self) -> int:
        return self._plan.steps(self._file.samples)

    def warm_up(self) -> None:
        """Compiling takes seconds once a process, whatever the number of loaders."""
        side = self._plan.size(0)
        nothing = np.zeros(1, np.int64)
        self._draw_chunk(nothing, np.empty((1, side, side, 3), np.uint8), nothing)

    def prepare(self, epoch: int) -> None:
        self._refuse_if_open()
        self._drop_prepared()
        self._prepared = self._begin(epoch, 0, self._plan.size(epoch))
        self._prepared.draw_ahead(_AHEAD)

    def close(self) -> None:
        self._drop_prepared()
        self._drawing.shutdown(cancel_futures=True)
        self._sending.shutdown(cancel_futures=True)
        self._ring = torch.empty(0)

    @contextmanager
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Iterator[Batch]]:
        self._refuse_if_open()
        request = (epoch, start_step, self._plan.size(epoch))
        if self._prepared is None or self._prepared.request != request:
            self._drop_prepared()
            self._prepared = self._begin(*request)
        under_way, self._prepared = self._prepared, None
        self._open = True
        try:
            yield self._batches(under_way)
        finally:
            under_way.stop()
            self._open = False

    def _refuse_if_open(self) -> None:
        if self._open:
            raise RuntimeError("an epoch of this loader is still open, and its buffers in use")

    def _drop_prepared(self) -> None:
        if self._prepared is not None:
            self._prepared.stop()
            self._prepared = None

    def _begin(self, epoch: int, start_step: int, side: int) -> _Epoch:
        ring = self._buffers(side)
        batches = self._plan.batches(self._file.samples, epoch, start_step)
        starts = (self._start(picks, buffer) for picks, buffer in zip(batches, itertools.cycle(ring), strict=False))
        return _Epoch((epoch, start_step, side), starts)

    def _batches(self, under_way: _Epoch) -> Iterator[Batch]:
        """At each turn the buffer of the batch before is free again, and the next one is drawn into it."""
        jobs = under_way.jobs
        under_way.draw_ahead(_AHEAD - len(jobs))
        while jobs:
            under_way.draw_ahead(1)
            batch = jobs[0].ready.result()
            jobs.popleft()
            yield self._transfer.hand_over(batch)

    def _start(self, picks: Picks, buffer: Tensor) -> _Job:
        indices, times = picks
        images = buffer[: len(indices)]
        pixels = images.numpy()
        chunks = [self._drawing.submit(self._file.will_need, indices)]
        chunks += [
            self._drawing.submit(self._draw_chunk, indices[at:end], pixels[at:end], times[at:end])
            for at in range(0, len(indices), self._chunk)
            for end in (at + self._chunk,)
        ]
        return _Job(chunks, self._sending.submit(self._send, indices, images, chunks))

    def _send(self, indices: NDArray[np.int64], images: Tensor, chunks: list[Future[None]]) -> Batch:
        for chunk in chunks:
            chunk.result()
        return self._transfer(images, torch.from_numpy(self._labels[indices]), torch.from_numpy(indices))

    def _draw_chunk(self, indices: NDArray[np.int64], out: NDArray[np.uint8], times: NDArray[np.int64]) -> None:
        augment.require_room(self._plan.crop, self._shortest_side, out.shape[1])
        self._draw_crops(indices, out, times)
        if self._plan.finish is not None:
            for image, index, time in zip(out, indices.tolist(), times.tolist(), strict=True):
                self._plan.finish(image, index, time)

    def _draw_crops(self, indices: NDArray[np.int64], out: NDArray[np.uint8], times: NDArray[np.int64]) -> None:
        file, augmentation, done = self._file, self._plan.augmentation, 0
        layout = (self._bytes, file.starts, file.lengths, file.modes, file.sizes)
        while done < len(indices):
            failed = _draw(*layout, indices[done:], *augmentation, times[done:], self._scratch(), out[done:])
            if failed < 0:
                return
            done += failed
            index = int(indices[done])
            _show(self._second_opinion(index), *augmentation, int(times[done]), index, out[done])
            done += 1

    def _second_opinion(self, index: int) -> NDArray[np.uint8]:
        """The pixels of an image for which libjpeg reported an error.

        A few original photographs cause one, and every decoder reads them nevertheless. Damage causes it, too: only an
        image whose bytes are unchanged since they were written is used.
        """
        file = self._file
        begin, end = int(file.starts[index]), int(file.starts[index] + file.lengths[index])
        checksums = manifests.read(file.path).page_crc32
        for page in range(begin // manifests.PAGE, (end - 1) // manifests.PAGE + 1):
            stored = self._bytes[page * manifests.PAGE : (page + 1) * manifests.PAGE]
            if zlib.crc32(stored.data) != checksums[page]:
                raise DataError(
                    f"{file.path}: image {index} is damaged. `acdc data check` lists all damage; "
                    "write the set again (`acdc data write --force`) or fetch another copy."
                )
        return file.decode(index)

    def _scratch(self) -> NDArray[np.uint8]:
        """This thread's room for one decoded image."""
        if not hasattr(self._thread, "scratch"):
            jpegs = self._file.sizes[self._file.modes == _JPEG]
            self._thread.scratch = np.empty(3 * int(jpegs.prod(axis=1).max(initial=0)), np.uint8)
        scratch: NDArray[np.uint8] = self._thread.scratch
        return scratch

    def _buffers(self, side: int) -> Tensor:
        """(batches, batch, side, side, 3): of one epoch after another, until the resolution changes."""
        shape = (_AHEAD + 1, self._plan.largest_batch, side, side, 3)
        if self._ring.shape != shape:
            self._ring = torch.empty(0)
            # validation may be the first to ask, but no gradient could pass a tensor that was made in inference mode
            with torch.inference_mode(False):
                self._ring = torch.empty(shape, dtype=torch.uint8, pin_memory=self._transfer.pinned)
        return self._ring
