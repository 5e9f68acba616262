"""Rounds of training with rewinding: each but the first restarts from an early epoch (arXiv 1912.05671)."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from acdc_cli.recipe.blocks.base import epochs_of
from acdc_cli.schedule.time import PhasePlan
from acdc_cli.sparsity.when import in_turn


@dataclass(frozen=True)
class Rounds:
    """A round of `length` epochs, then one after each of the `prunings`, which starts at epoch `rewound_to` of it."""

    length: int
    rewound_to: int
    prunings: int

    @property
    def epochs(self) -> int:
        return self.start(self.prunings + 1)

    def start(self, number: int) -> int:
        """The epoch of the run at which round `number` starts, counted from 0; after the last, the run's end."""
        return self.length + (number - 1) * (self.length - self.rewound_to) if number else 0

    def at(self, epoch: float) -> int:
        """The round that this epoch of the run is in."""
        return 0 if epoch < self.length else 1 + int((epoch - self.length) // (self.length - self.rewound_to))

    def clock(self, progress: float) -> float:
        """Position within the round, in epochs, including the epochs that rewinding skips."""
        number = self.at(progress)
        return progress - self.start(number) + self.rewound_to if number else progress

    def phases(self) -> PhasePlan:
        """One phase per round: the first dense, the last sparse, because it has the target's masks."""
        starts = [self.start(number) for number in range(self.prunings + 2)]
        return in_turn(
            *(
                ("sparse" if number == self.prunings else "ramp" if number else "dense", end - start)
                for number, (start, end) in enumerate(pairwise(starts))
            )
        )


@cache
def rounds_of(epochs: int, prunings: int, rewind_to: int | str) -> Rounds | None:
    """The rounds of a run of this many epochs; None if its epochs do not divide into equal rounds."""

    def of(length: int) -> Rounds:
        return Rounds(length, epochs_of(rewind_to, length), prunings)

    # a longer round makes a longer run, however its share is rounded
    rounds = of(bisect_left(range(epochs + 1), epochs, key=lambda length: of(length).epochs))
    return rounds if rounds.epochs == epochs and rounds.rewound_to < rounds.length else None
