"""Keys of methods whose sparsity rises along the cubic in whole epochs: when and how much together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import PositiveInt

from acdc_cli.recipe.blocks.base import Epochs, Misfit, RunSize, Sparsity, epochs_of
from acdc_cli.recipe.blocks.sparsity import TargetBlock
from acdc_cli.schedule.time import PhasePlan
from acdc_cli.sparsity.how_much import Cubic, above_target
from acdc_cli.sparsity.when import in_turn


class CubicKeys(TargetBlock):
    """The sparsity rises to the target along the cubic, in steps of whole epochs."""

    begin: Epochs = 0
    """Epochs of dense training before the sparsity starts to rise, as a number or a share of the run."""
    end: Epochs = "75%"
    """Epoch at whose start the sparsity reaches the target, whether or not a regular update falls on it."""
    every_epochs: PositiveInt = 5
    """Epochs between two steps of the sparsity."""
    initial_sparsity: Sparsity = 0.0
    """Sparsity that the cubic starts from, at the start of epoch `begin`. 0: nothing is pruned before the next step."""

    @classmethod
    def proposed(cls, run: RunSize, target: float) -> dict[str, Any]:
        return super().proposed(run, target) | {"every_epochs": max(1, run.epochs // 20)}

    def check(self, run: RunSize) -> Iterator[Misfit]:
        yield from super().check(run)
        yield from above_target(self.initial_sparsity, self.target)
        begin, end = self.ramp(run.epochs)
        if end >= run.epochs:
            last = f"epoch {run.epochs - 1} is the last"
            yield Misfit("end", f"the sparsity would reach the target at epoch {end}, but {last}; make it earlier")
        elif begin > end:
            yield Misfit(
                "begin", f"the sparsity would rise from epoch {begin} to epoch {end}; begin must come before end"
            )
        elif self.n_of_m and begin < end:
            only = f"{self.pattern} has a single sparsity, but {self.method} reaches its target in steps"
            yield Misfit("pattern", f"{only}; use another method, such as acdc, or another pattern")
        if 0 < end - begin <= self.every_epochs:
            rises = f"the sparsity rises from epoch {begin} to {end}, within one step of {self.every_epochs} epochs"
            yield Misfit("every_epochs", f"{rises}, so it jumps to the target; make it smaller", stops=False)

    def phases(self, epochs: int) -> PhasePlan:
        begin, end = self.ramp(epochs)
        return in_turn(("dense", begin), ("ramp", end - begin), ("sparse", epochs - end))

    def updates_at(self, epoch: int, epochs: int) -> bool:
        """Does the sparsity change at the start of this epoch?"""
        begin, end = self.ramp(epochs)
        if epoch == begin < end:
            return self.initial_sparsity > 0
        return epoch == end or (begin < epoch < end and (epoch - begin) % self.every_epochs == 0)

    def sparsity(self, epoch: int, epochs: int) -> float:
        """Sparsity of the masks in this epoch; it is constant between two updates."""
        begin, end = self.ramp(epochs)
        if epoch < begin:
            return 0.0
        since_update = max(epoch - begin, 0) % self.every_epochs if epoch < end else 0
        return Cubic(begin, end, self.target, self.initial_sparsity).at(epoch - since_update)

    def ramp(self, epochs: int) -> tuple[int, int]:
        """The epochs at which the sparsity starts to rise and reaches the target; equal if it jumps."""
        return epochs_of(self.begin, epochs), epochs_of(self.end, epochs)
