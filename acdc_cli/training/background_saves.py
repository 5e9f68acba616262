"""Checkpoints written beside the training: a step waits only until its state has been copied to the host's memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from acdc_cli.training import checkpoint


class BackgroundSaves:
    """Writes one state at a time, in a thread; a failure to write is raised by the next call.

    The thread does not keep an interrupted process alive: what it was writing is then a leftover beside the files of
    the checkpoint before.
    """

    def __init__(self) -> None:
        self._copies: dict[tuple[object, ...], Tensor] = {}
        """Host memory of the last state, which the next one reuses, by place in the state."""
        self._writing: threading.Thread | None = None
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits, unless the process has been interrupted: an error keeps the last good state."""
        if kind is None or issubclass(kind, Exception):
            self.wait()

    def save(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Copies the state and begins to write it into the folder, after the one in flight has been written."""
        self.wait()
        copy = self._copy(state, ())
        on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        copied = torch.cuda.current_stream().record_event() if on_gpu else None
        self._writing = threading.Thread(target=self._write, args=(folder, copy, copied), daemon=True)
        self._writing.start()

    def wait(self) -> None:
        """Until the state in flight, if any, is on the disk."""
        if self._writing:
            self._writing.join()
            self._writing = None
        self.check()

    def check(self) -> None:
        """Raises what has kept a state from being written."""
        if self._failure:
            failure, self._failure = self._failure, None
            raise failure

    def _write(self, folder: Path, state: Mapping[str, Any], copied: torch.cuda.Event | None) -> None:
        try:
            if copied:
                copied.synchronize()
            checkpoint.save_state(folder, state)
        except BaseException as failure:
            self._failure = failure

    def _copy(self, value: Any, place: tuple[object, ...]) -> Any:
        """The same value, which training will not change.

        A GPU copies its tensors before it begins the next step, and the host does not wait for it.
        """
        if isinstance(value, Tensor):
            copy = self._copies.get(place)
            if copy is None or (copy.shape, copy.dtype, copy.stride()) != (value.shape, value.dtype, value.stride()):
                copy = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
                self._copies[place] = copy
            return copy.copy_(value.detach(), non_blocking=True)
        if isinstance(value, Mapping):
            return {key: self._copy(each, (*place, key)) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copy(each, (*place, index)) for index, each in enumerate(value))
        return value
