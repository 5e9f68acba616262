"""Who runs a cell: a process, told from all others of all machines, those that had its number before included."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

_STATE, _BEGAN = 0, 19
"""Places in /proc/<pid>/stat behind the command's name."""


@dataclass(frozen=True)
class Owner:
    host: str
    pid: int
    space: str
    """In which `pid` means something: a boot of a machine, and there a container's own numbers."""
    began: int
    """When the process did, in clock ticks since that boot."""

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
    """Has the process of this id ended? Of those that are not seen from here that is never said."""
    space, pid, began = owner.split("/")
    return space == _space() and _began(int(pid)) != int(began)


def _space() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}"


def _began(pid: int) -> int | None:
    """None where no such process is alive: one that has ended and waits for its parent to hear of it is not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[_STATE] in "ZX" else int(fields[_BEGAN])
