"""Time in a run: its moments, and the phases of its epochs (P1 3.2)."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal


@dataclass(frozen=True)
class Moment:
    """An iteration of a run; epochs and steps count from 0."""

    epoch: int
    step: int
    """Step of the whole run, not of the epoch."""
    epochs: int
    steps_per_epoch: int

    @property
    def progress(self) -> float:
        """Epochs elapsed before this step, with their fraction."""
        return self.step / self.steps_per_epoch


@dataclass(frozen=True)
class Phase:
    """Epochs `start` up to but not including `end`."""

    kind: Literal["dense", "ramp", "sparse"]
    start: int
    end: int


@dataclass(frozen=True)
class PhasePlan:
    """The phases of a run, in order, without gap or overlap, from epoch 0 to the last.

    Raises ValueError if they are not.
    """

    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        if not self.phases or self.phases[0].start != 0:
            raise ValueError(f"the first phase must start at epoch 0: {self.phases}")
        if any(phase.end <= phase.start for phase in self.phases):
            raise ValueError(f"every phase must hold at least one epoch: {self.phases}")
        if any(left.end != right.start for left, right in pairwise(self.phases)):
            raise ValueError(f"every phase must start where the one before it ends: {self.phases}")

    @property
    def epochs(self) -> int:
        return self.phases[-1].end

    def at(self, epoch: int) -> Phase:
        """The phase that holds this epoch. Raises ValueError if none does."""
        if not 0 <= epoch < self.epochs:
            raise ValueError(f"epoch {epoch} is outside the run's {self.epochs} epochs")
        # bisected, because long runs have hundreds of phases
        return self.phases[bisect_right(self.phases, epoch, key=lambda phase: phase.start) - 1]

    def after_dense(self, epoch: int) -> bool:
        """Whether this epoch's phase is not dense and an earlier one was."""
        phase = self.at(epoch)
        return phase.kind != "dense" and any(each.kind == "dense" for each in self.phases if each.end <= phase.start)

    def begins(self, epoch: int) -> bool:
        """Whether this is the first epoch of its phase."""
        return self.at(epoch).start == epoch

    def ends(self, epoch: int) -> bool:
        """Whether this is the last epoch of its phase."""
        return self.at(epoch).end == epoch + 1
