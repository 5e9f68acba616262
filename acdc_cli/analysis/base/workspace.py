"""Computations that take minutes: shows their progress and resumes interrupted ones."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

import safetensors
import torch
from torch import Tensor

from acdc_cli import console, files
from acdc_cli.models.tensors import load_tensors, save_tensors

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

Combined = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]

_EVERY_SECONDS = 20.0


class Batches(Protocol[T_co]):
    """What `Workspace.sums` iterates over: a loader, or an object that yields its batches in another form."""

    @property
    def steps(self) -> int: ...

    def epoch(self, epoch: int, start_step: int = 0) -> AbstractContextManager[Iterator[T_co]]: ...


class Workspace:
    """Interim results by key, in files that are valid only for the same models, data and options."""

    def __init__(self, folder: Path | None, rests_on: str = "", every_seconds: float = _EVERY_SECONDS) -> None:
        """folder: None saves nothing.  rests_on: identifies everything the results depend on."""
        self._folder = folder
        self._rests_on = hashlib.sha256(rests_on.encode()).hexdigest()
        self._every = every_seconds

    def sums(
        self,
        key: str,
        batches: Batches[T],
        add: Callable[[T], Mapping[str, Tensor]],
        description: str,
        combined: Combined | None = None,
    ) -> dict[str, Tensor]:
        """The sums of what `add` returns for each batch, floats as float64; a resumed pass counts each batch once.

        key: identifies this pass within the analysis. `add` runs without gradients and its tensors stay on their
        device: the host waits for them only when interim results are saved.
        combined: totals and what `add` returns to totals; None adds.
        """
        totals = self.kept(key) or {}
        done = int(totals.pop(_DONE, torch.zeros(())))
        if done == batches.steps:
            return totals
        saved_at = time.monotonic()
        try:
            with (
                console.progress(description) as bar,
                torch.no_grad(),
                batches.epoch(0, start_step=done) as drawn,
            ):
                shown = bar.add_task(description, total=batches.steps, completed=done)
                for batch in drawn:
                    totals, done = (combined or _added)(totals, add(batch)), done + 1
                    bar.advance(shown)
                    if time.monotonic() - saved_at >= self._every:
                        self.keep(key, {**totals, _DONE: torch.tensor(done)})
                        saved_at = time.monotonic()
        finally:
            if done:
                self.keep(key, {**totals, _DONE: torch.tensor(done)})
        return totals

    def kept(self, key: str) -> dict[str, Tensor] | None:
        """The tensors last saved under this key, on the CPU; None if there are none or they are no longer valid."""
        if self._folder is None:
            return None
        try:
            tensors, about = load_tensors(self._file(key))
        except (OSError, ValueError, safetensors.SafetensorError):
            # missing or damaged: either way it is computed again
            return None
        return tensors if about.get(_RESTS_ON) == self._rests_on else None

    def keep(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Raises RunError if the file cannot be written."""
        if self._folder is None:
            return
        with files.explained(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        save_tensors(self._file(key), tensors, {_RESTS_ON: self._rests_on})

    @property
    def keeps_something(self) -> bool:
        return self._folder is not None and any(self._folder.glob("*.safetensors"))

    def clear(self) -> None:
        """Deletes the interim results once the work is finished."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _file(self, key: str) -> Path:
        assert self._folder is not None
        # keys may contain characters that file names cannot
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"


UNSAVED = Workspace(None)
"""Saves nothing: for calling an analysis's functions from Python."""

_DONE = "batches that are in the sums"
_RESTS_ON = "rests on"


def _added(totals: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    added = dict(totals)
    for name, value in sums.items():
        each = value.double() if value.is_floating_point() else value
        added[name] = added[name].to(each.device) + each if name in added else each
    return added
