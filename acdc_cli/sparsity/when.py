"""When a method acts: the phases of its run, and the steps at which it updates its masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, Literal, Self

from pydantic import PositiveInt, model_validator

from acdc_cli.recipe.blocks.base import Epochs, Misfit, RunSize, epochs_of
from acdc_cli.recipe.blocks.sparsity import SparsityBlock, TargetBlock
from acdc_cli.schedule.time import Moment, Phase, PhasePlan

PhaseLength = tuple[Literal["dense", "ramp", "sparse"], int]
"""A phase's kind and its length in epochs."""


@lru_cache
def in_turn(*lengths: PhaseLength) -> PhasePlan:
    """Phases of these kinds and lengths, in order; phases of 0 epochs are left out."""
    # cached, because every epoch asks for the plan, which may be long
    bounds = pairwise(accumulate((epochs for _, epochs in lengths), initial=0))
    placed = (Phase(kind, *bound) for (kind, _), bound in zip(lengths, bounds, strict=True))
    return PhasePlan(tuple(phase for phase in placed if phase.start < phase.end))


def ranks_after(moment: Moment, every: int) -> bool:
    """Whether weights ranked every `every` steps are ranked after this step.

    Never after the run's last step: the model would have weights that no forward pass has used.
    """
    done = moment.step + 1
    return done % every == 0 and done < moment.epochs * moment.steps_per_epoch


class OnceBlock(TargetBlock):
    """A single pruning, at the start of an epoch."""

    at_once = {"at": 0}
    at: Epochs = "50%"
    """Epoch at whose start the weights are pruned, as a number or a share of the run; 0 with `from_checkpoint`."""

    def check(self, run: RunSize) -> Iterator[Misfit]:
        yield from super().check(run)
        if (at := self.epoch(run.epochs)) >= run.epochs:
            last = f"epoch {run.epochs - 1} is the last"
            yield Misfit("at", f"the weights would be pruned at epoch {at}, but {last}; make it earlier")

    def epoch(self, epochs: int) -> int:
        """The epoch of the pruning in a run of so many epochs."""
        return epochs_of(self.at, epochs)

    def phases(self, epochs: int) -> PhasePlan:
        at = self.epoch(epochs)
        return in_turn(("dense", at), ("sparse", epochs - at))


class UpdateKeys(SparsityBlock):
    """Updates of the masks at regular steps, until an epoch at which they end (arXiv 1911.11134)."""

    every: PositiveInt | None = None
    """Steps between two updates of the masks (RigL: 100). Either this or `every_epochs`."""
    every_epochs: PositiveInt | None = None
    """Epochs between two updates of the masks (P2 B: 1). Either this or `every`."""
    end: Epochs = "75%"
    """Epoch from which the masks stay fixed, as a number or a share of the run."""

    @classmethod
    def proposed(cls, run: RunSize, target: float) -> dict[str, Any]:
        # RigL's 100 steps, in short epochs two updates an epoch
        return super().proposed(run, target) | {"every": min(100, max(1, (run.steps_per_epoch or 200) // 2))}

    @model_validator(mode="after")
    def _can_update(self) -> Self:
        if (self.every is None) == (self.every_epochs is None):
            raise ValueError(
                "every: set the interval between two updates with either `every` (steps) or `every_epochs`; "
                "null removes an inherited key"
            )
        if isinstance(self, TargetBlock) and self.pattern != "unstructured":
            raise ValueError(
                "pattern: weights drop and grow one by one, which breaks a pattern's groups; use unstructured"
            )
        return self

    def check(self, run: RunSize) -> Iterator[Misfit]:
        yield from super().check(run)
        end = epochs_of(self.end, run.epochs)
        if end > run.epochs:
            yield Misfit("end", f"the updates would end at epoch {end}, but the run has {run.epochs}; make it earlier")
        elif (self.every_epochs or 0) >= end:
            key = "every_epochs" if self.every_epochs else "end"
            yield Misfit(
                key, f"there is no update before epoch {end}, where updates end; for fixed masks, use method static"
            )
        elif run.steps_per_epoch and (interval := self.interval(run.steps_per_epoch)) >= end * run.steps_per_epoch:
            first = f"the first update would be at step {interval}, but the updates end before step"
            text = f"{first} {end * run.steps_per_epoch} (epochs of {run.steps_per_epoch} steps): make it smaller"
            yield Misfit("every", text)
        usual = type(self).model_fields["end"].default
        # a method whose own paper updates to the end does so by default
        if end == run.epochs != epochs_of(usual, run.epochs):
            text = "the masks change until the run ends, so weights that grow last are hardly trained"
            yield Misfit("end", f"{text}; the default of {self.method} is {usual}", stops=False)

    def interval(self, steps_per_epoch: int) -> int:
        """Steps between two updates."""
        return self.every or (self.every_epochs or 0) * steps_per_epoch

    def last_step(self, moment: Moment) -> int:
        """The step of the run from which there are no updates."""
        return epochs_of(self.end, moment.epochs) * moment.steps_per_epoch

    def last_update(self, moment: Moment) -> int:
        """The step of the run's last update; 0 if there is none."""
        interval = self.interval(moment.steps_per_epoch)
        return (self.last_step(moment) - 1) // interval * interval

    def updates_at(self, moment: Moment) -> bool:
        """Are the masks updated at this step?"""
        interval = self.interval(moment.steps_per_epoch)
        return 0 < moment.step < self.last_step(moment) and moment.step % interval == 0

    def latest_update(self, moment: Moment) -> int:
        """The step of the latest update up to and including this step; 0 if there was none."""
        interval = self.interval(moment.steps_per_epoch)
        return min(moment.step // interval * interval, self.last_update(moment))

    def updates_in(self, epoch: int, epochs: int, steps_per_epoch: int) -> int:
        """Number of updates in this epoch."""
        steps = range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch)
        first, last = (Moment(epoch, step, epochs, steps_per_epoch) for step in (steps[0], steps[-1]))
        between = (self.latest_update(last) - self.latest_update(first)) // self.interval(steps_per_epoch)
        return between + self.updates_at(first)

    def update_after(self, moment: Moment) -> Moment | None:
        """The next step, if the masks are updated between this step and it.

        None between two epochs: that update waits for the start of the next epoch, after validation.
        """
        following = replace(moment, step=moment.step + 1)
        within = following.step % following.steps_per_epoch > 0
        return following if within and self.updates_at(following) else None
