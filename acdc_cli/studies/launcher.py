"""What starts a study's runs: one small interface, so that they go to this machine or to a cluster."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from signal import Signals
from typing import Protocol

from acdc_cli.studies.grid import Cell


class Job(Protocol):
    """A run that was started."""

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it goes on."""

    def stop(self, signal: Signals) -> None:
        """Send it a signal; nothing happens where it has ended."""


class Launcher(Protocol):
    slots: int
    """Runs that it works at at the same time."""
    outlives: bool
    """Do its runs go on when this process ends? Then they are let go, not asked to end."""

    def under_way(self) -> Collection[str]:
        """Keys of the cells whose runs go on in its care, whoever started them: `start` takes such a one up again."""

    def start(self, cell: Cell, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Job:
        """environment: what is added to that of this process. log: what the command says is appended to this file.

        Called only while fewer than `slots` of its jobs go on.
        """
