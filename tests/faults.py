"""A file system that fails: below a folder, the k-th call that writes goes wrong in a chosen way."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import mock


class Killed(BaseException):
    """kill -9: whatever the process would still do to the files does not happen."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong at a call."""

    name: str
    error: int = 0
    """Number of the OSError; 0: none."""
    for_ever: bool = False
    """Every later open, write, fsync and rename fails as well; removing and cutting off still work."""
    short: bool = False
    """If the call is a write, half of it is written first."""
    kills: bool = False

    def differs_in_errno(self, other: Fault) -> bool:
        """And in nothing else, if at all."""
        return bool(self.error and other.error) and replace(self, name="", error=0) == replace(other, name="", error=0)


FAULTS = [
    Fault("full once", errno.ENOSPC),
    Fault("full", errno.ENOSPC, for_ever=True),
    Fault("full in the middle", errno.ENOSPC, short=True),
    Fault("full from the middle on", errno.ENOSPC, short=True, for_ever=True),
    Fault("over quota", errno.EDQUOT, for_ever=True),
    Fault("input/output error", errno.EIO),
    Fault("dying disk", errno.EIO, for_ever=True),
    Fault("read-only from now on", errno.EROFS, for_ever=True),
    Fault("not permitted", errno.EACCES),
    Fault("too large", errno.EFBIG, short=True),
    Fault("short write", short=True),
    Fault("killed", kills=True),
    Fault("killed in the middle", short=True, kills=True),
]
TWINS = [fault for number, fault in enumerate(FAULTS) if any(map(fault.differs_in_errno, FAULTS[:number]))]
"""Those that go the way of another, but for what they are called."""


class FaultySystem:
    """While entered, counts the calls below `folder` in `calls`; call number `at` (from 0) has the fault."""

    def __init__(self, folder: Path, fault: Fault | None = None, at: int = -1) -> None:
        self._folder = str(folder)
        self._fault = fault
        self._at = at
        self._stack = ExitStack()
        self.calls: list[str] = []

    def __enter__(self) -> FaultySystem:
        original = io.open

        def opened(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wax+") or not self._concerns(file):
                return original(file, mode, buffering, *args, **kwargs)
            self.call("open")
            raw = _Raw(file, mode.replace("b", "").replace("t", ""), self)
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

        self._stack.enter_context(mock.patch.object(io, "open", opened))
        self._stack.enter_context(mock.patch.object(builtins, "open", opened))
        for name in ("replace", "rename", "link", "unlink", "mkdir", "truncate"):
            self._patch(name, getattr(os, name))
        # counted, but not done: it takes long and shows nothing without a power cut
        self._patch("fsync", lambda descriptor: None)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def _patch(self, name: str, original: Callable[..., Any]) -> None:
        def patched(target: Any, *args: Any, **kwargs: Any) -> Any:
            if self._concerns(target):
                self.call(name)
            return original(target, *args, **kwargs)

        self._stack.enter_context(mock.patch.object(os, name, patched))

    def _concerns(self, target: Any) -> bool:
        path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
        return str(path).startswith(self._folder)

    def call(self, name: str, half: Callable[[], int] | None = None) -> int | None:
        """Fails if it is this call's turn; half: does half of a write, whose size is returned if that is all."""
        index, fault = len(self.calls), self._fault
        self.calls.append(name)
        if fault is None or index < self._at:
            return None
        if fault.kills:
            if index == self._at and fault.short and half:
                half()
            raise Killed
        if index == self._at:
            written = half() if fault.short and half else None
            if fault.error:
                raise OSError(fault.error, os.strerror(fault.error))
            return written
        if fault.for_ever and name not in ("unlink", "truncate"):
            raise OSError(fault.error, os.strerror(fault.error))
        return None


class _Raw(io.FileIO):
    def __init__(self, path: Any, mode: str, system: FaultySystem) -> None:
        super().__init__(path, mode)
        self._system = system

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = self._system.call("write", lambda: super(_Raw, self).write(view[: len(view) // 2]))
        return super().write(view) if written is None else written

    def truncate(self, size: int | None = None) -> int:
        self._system.call("truncate")
        return super().truncate(size)
