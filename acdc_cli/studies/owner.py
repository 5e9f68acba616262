"""The process that runs a cell, identified across machines, reboots and reused process ids."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

_STATE, _BEGAN = 0, 19
"""Positions in /proc/<pid>/stat after the command's name."""


@dataclass(frozen=True)
class Owner:
    host: str
    pid: int
    space: str
    """Where `pid` is valid: a boot of a machine, and a PID namespace in it."""
    began: int
    """Start of the process, in clock ticks since that boot."""

    @classmethod
    def this_process(cls) -> Owner:
        pid = os.getpid()
        began = _began(pid)
        assert began is not None
        return cls(socket.gethostname(), pid, _space(), began)

    @property
    def id(self) -> str:
        return f"{self.space}/{self.pid}/{self.began}"


def is_gone(owner: str) -> bool:
    """Whether the process with this id has ended; False for processes that cannot be seen from here."""
    space, pid, began = owner.split("/")
    return space == _space() and _began(int(pid)) != int(began)


def _space() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}"


def _began(pid: int) -> int | None:
    """None if no such process is alive; a zombie counts as dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[_STATE] in "ZX" else int(fields[_BEGAN])
