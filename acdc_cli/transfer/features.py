"""The inputs of a model's classifier for every sample of a split, on the disk: extracted once, resumable."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor, nn

from acdc_cli import console, files, reading
from acdc_cli.data.batches import Loader
from acdc_cli.errors import ModelError, RunError
from acdc_cli.models.weights import classifier_of
from acdc_cli.training.evaluate import Forward
from acdc_cli.training.precision import Precision

_EVERY_SECONDS = 20.0


class Extractor(Protocol):
    """A model on its device, in eval mode."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def forward(self) -> Forward: ...
    @property
    def precision(self) -> Precision: ...


@dataclass(frozen=True)
class Features:
    values: NDArray[np.float32]
    """(samples, width), mapped from its file, so that it takes no memory."""
    labels: NDArray[np.int64] | NDArray[np.float32]
    """(samples,): classes or scores."""


class _Progress(reading.Form):
    batches: reading.Count
    samples: reading.Count


def extract(
    file: Path,
    extractor: Extractor,
    opened: AbstractContextManager[Loader],
    description: str,
    labels_as: type[np.generic] = np.int64,
) -> Features:
    """The features of a loader's samples, from `file` if it is complete; else those that it lacks are computed.

    opened: the loader, which is only entered if features are computed.
    file: its name must change with the weights, the samples and their preparation.
    labels_as: the type of the loader's targets.
    Raises RunError if it cannot be written, ModelError if the classifier's input is not one vector per sample.
    """
    labels, progress = file.with_suffix(".labels.npy"), file.with_suffix(".unfinished.json")
    if not file.exists() or progress.exists():
        busy = RunError(f"another process extracts {description} now; wait for it, or stop it")
        with files.explained(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with files.locked(file.with_suffix(".lock"), busy), opened as loader:
                if not _done(progress)[0]:
                    width = classifier_of(extractor.model)[1].in_features
                    # before the files, so that no file is taken for complete
                    _save(progress, 0, 0)
                    _allocate(file, (loader.samples, width), np.float32)
                    _allocate(labels, (loader.samples,), labels_as)
                _fill(file, labels, progress, extractor, loader, description)
    try:
        return Features(np.load(file, mmap_mode="r"), np.load(labels))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} is damaged ({error}); delete it, and run the command again") from error


def _fill(file: Path, labels: Path, progress: Path, extractor: Extractor, loader: Loader, description: str) -> None:
    head = classifier_of(extractor.model)[1]
    done, at = _done(progress)
    values, numbers = open_memmap(file, mode="r+"), open_memmap(labels, mode="r+")
    saved_at = time.monotonic()
    with (
        console.progress(description) as bar,
        _inputs_of(head) as inputs,
        torch.inference_mode(),
        loader.epoch(0, done) as batches,
    ):
        shown = bar.add_task(description, total=loader.steps, completed=done)
        for batch in batches:
            with extractor.precision.autocast():
                extractor.forward(batch.inputs)
            end = at + len(batch.targets)
            values[at:end] = _vectors(inputs, len(batch.targets)).float().cpu().numpy()
            numbers[at:end] = batch.targets.cpu().numpy()
            at, done = end, done + 1
            bar.advance(shown)
            if time.monotonic() - saved_at >= _EVERY_SECONDS:
                _flush(values, numbers)
                _save(progress, done, at)
                saved_at = time.monotonic()
    _flush(values, numbers)
    progress.unlink()


def _done(progress: Path) -> tuple[int, int]:
    """Batches and samples whose features are in the file."""
    if not progress.exists():
        return 0, 0
    done = reading.read_json(progress, _Progress, remedy="delete it")
    return done["batches"], done["samples"]


def _flush(*arrays: Any) -> None:
    for array in arrays:
        array.flush()


def _save(progress: Path, batches: int, samples: int) -> None:
    files.write_text(progress, json.dumps({"batches": batches, "samples": samples}))


def _allocate(file: Path, shape: tuple[int, ...], dtype: type) -> None:
    open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    # else a full disk ends the process with a signal at the first page that cannot be written
    with file.open("r+b") as opened:
        os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)


@contextmanager
def _inputs_of(head: nn.Linear) -> Iterator[list[Tensor]]:
    """The inputs of each call of the layer, as they come; the reader takes them out."""
    inputs: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        yield inputs
    finally:
        hook.remove()


def _vectors(inputs: list[Tensor], samples: int) -> Tensor:
    taken = list(inputs)
    inputs.clear()
    if len(taken) != 1 or taken[0].dim() != 2 or len(taken[0]) != samples:
        raise ModelError(
            "the model's last linear layer does not take one vector per sample, so it is no classifier that transfer "
            "could replace; take a model that ends in one"
        )
    return taken[0]
