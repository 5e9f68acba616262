"""stdout and stderr when they are full, closed or a broken pipe: a run outlives both, and lost data are an error."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from acdc_cli.errors import AcdcError

_CLOSED = io.StringIO()
_CLOSED.close()


class OutputError(AcdcError):
    """stdout does not take the data that a command prints."""


class Stream:
    """A standard stream whose failures are an OutputError once (stdout), or nothing (stderr)."""

    def __init__(self, name: Literal["stdout", "stderr"], stream: Any = None) -> None:
        """stream: None: the one of this name in `sys` at the time."""
        self._name, self._given = name, stream
        self._lost = False

    @property
    def _stream(self) -> Any:
        # Python has None for a stream that was closed when it started
        return self._given or getattr(sys, self._name) or _CLOSED

    def write(self, text: str) -> int:
        with self._surviving():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._surviving():
            if not self._stream.closed:
                self._stream.flush()
                self._lost = False

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        # ValueError: of a closed stream, or of a character that its encoding lacks
        except (OSError, ValueError) as error:
            if self._name == "stdout" and not self._lost:
                # once, because Python flushes what could not be written again when it ends
                self._lost = True
                reason = getattr(error, "strerror", None) or error
                raise OutputError(f"stdout cannot be written: {reason}; what this command prints is lost") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def secure() -> None:
    """Guards `sys.stdout` and `sys.stderr` for all code, and keeps other files off their numbers."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # else the next file that is opened gets this number, and with it what C libraries print
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout, sys.stderr = (Stream(name, getattr(sys, name) or _CLOSED) for name in ("stdout", "stderr"))
