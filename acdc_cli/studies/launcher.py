"""The interface that starts a study's runs, on this machine or on a cluster."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from signal import Signals
from typing import Protocol

from acdc_cli.studies.grid import Cell


class Job(Protocol):
    """A run that has been started."""

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it is running."""

    def stop(self, signal: Signals) -> None:
        """Sends it a signal; does nothing if it has ended."""


class Launcher(Protocol):
    slots: int
    """Number of runs at the same time."""
    outlives: bool
    """Whether its runs continue after this process ends. If so, they are left running rather than asked to end."""

    def under_way(self) -> Collection[str]:
        """Keys of the cells whose runs are still running, including those of other sweeps; `start` attaches to one."""

    def start(self, cell: Cell, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Job:
        """environment: variables added to this process's. log: file to which the command's output is appended.

        Called only while fewer than `slots` of its jobs are running.
        """
