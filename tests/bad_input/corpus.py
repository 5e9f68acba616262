"""A bad input: how it is made, the command that meets it, and all that is said."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Make = Callable[[], object]
PAGE = 1 << 16
"""Bytes of a page of the .beton files here; the images of a split fit into the second one."""


@dataclass(frozen=True)
class Case:
    name: str
    make: Make
    """Runs in the folder that `home` describes."""
    command: str
    said: str
    """After `error: `. HOME is the folder, <…> what `PLACEHOLDERS` name, and … anything: what others word."""
    leaves: tuple[str, ...] = ()
    """What is there afterwards that was not there before."""

    @property
    def arguments(self) -> list[str]:
        return shlex.split(self.command)


def nothing() -> None:
    """The command itself is what is wrong."""


def all_of(*makes: Make) -> Make:
    return lambda: [make() for make in makes]


def wrote(name: str, content: str | bytes) -> Make:
    """A file with this content."""
    return lambda: Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())


def changed(old: str, new: str, name: str = "small.yaml") -> Make:
    def make() -> None:
        text = Path(name).read_text()
        assert text.count(old) == 1
        Path(name).write_text(text.replace(old, new))

    return make


def cut(name: str, size: int) -> Make:
    """The file's first bytes alone."""
    return lambda: Path(name).write_bytes(Path(name).read_bytes()[:size])


def flipped(name: str, at: int) -> Make:
    def make() -> None:
        data = bytearray(Path(name).read_bytes())
        data[at] ^= 0xFF
        Path(name).write_bytes(data)

    return make


def entry(name: str, **values: Any) -> Make:
    """A JSON file with other values at these keys."""

    def make() -> None:
        Path(name).write_text(json.dumps(json.loads(Path(name).read_text()) | values))

    return make


def removed(*names: str) -> Make:
    return lambda: [Path(name).unlink() for name in names]
