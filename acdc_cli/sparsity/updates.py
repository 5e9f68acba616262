"""What methods share that update random masks time and again: when they do (arXiv 1911.11134)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self, TypeVar

from pydantic import PositiveInt, model_validator

from acdc_cli.errors import RecipeError
from acdc_cli.recipe.schema import Epochs, epochs_of
from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.random_start import RandomStart, RandomStartBlock


class UpdatedBlock(RandomStartBlock):
    every: PositiveInt | None = None
    """Steps between two updates of the masks (RigL: 100). Either this or `every_epochs`."""
    every_epochs: PositiveInt | None = None
    """Epochs between two updates of the masks (P2 B: 1). Either this or `every`."""
    end: Epochs = "75%"
    """Epoch from which on the masks stay, as a number or a share of the run."""

    @model_validator(mode="after")
    def _can_update(self) -> Self:
        if (self.every is None) == (self.every_epochs is None):
            raise ValueError(
                "every: give the interval between two updates once, as `every` (steps) or as `every_epochs`; "
                "null takes back an inherited one"
            )
        if self.pattern != "unstructured":
            raise ValueError(
                "pattern: weights drop and grow one by one, which would break up a pattern's groups; take unstructured"
            )
        return self

    def problems(self, epochs: int) -> list[tuple[str, str]]:
        end = epochs_of(self.end, epochs)
        if end > epochs:
            return [("end", f"the updates would end at epoch {end}, after the run's {epochs}")]
        if (self.every_epochs or 0) >= end:
            key = "every_epochs" if self.every_epochs else "end"
            return [
                (key, f"no update would come before epoch {end}, where they end; masks that stay are method static")
            ]
        return []

    def step_problems(self, epochs: int, steps_per_epoch: int) -> list[tuple[str, str]]:
        interval, last = self.interval(steps_per_epoch), self._last_step(epochs, steps_per_epoch)
        if interval < last:
            return []
        update = f"the first update would be at step {interval}, but the updates end before step {last}"
        return [("every", f"{update} (epochs of {steps_per_epoch} steps): make it smaller")]

    def doubts(self, epochs: int, steps_per_epoch: int) -> list[tuple[str, str]]:
        usual = type(self).model_fields["end"].default
        # a method whose own paper updates to the end does so by default
        if epochs_of(self.end, epochs) < epochs or epochs_of(usual, epochs) == epochs:
            return []
        text = "the masks change until the run ends, and what grows last is hardly trained"
        return [("end", f"{text}; {self.method}'s own is {usual}")]

    def interval(self, steps_per_epoch: int) -> int:
        """Steps between two updates."""
        return self.every or (self.every_epochs or 0) * steps_per_epoch

    def last_step(self, moment: Moment) -> int:
        """No update comes at this step of the run or after it."""
        return self._last_step(moment.epochs, moment.steps_per_epoch)

    def updates_at(self, moment: Moment) -> bool:
        """Are the masks updated at this step?"""
        interval = self.interval(moment.steps_per_epoch)
        return 0 < moment.step < self.last_step(moment) and moment.step % interval == 0

    def _last_step(self, epochs: int, steps_per_epoch: int) -> int:
        return epochs_of(self.end, epochs) * steps_per_epoch


ConfigT = TypeVar("ConfigT", bound=UpdatedBlock)


class Updated(RandomStart[ConfigT], ABC):
    """Counts the updates; what one does, and where in a step, a method says."""

    def __init__(self, config: ConfigT, masked: MaskedParameters, epochs: int, seed: int = 0) -> None:
        super().__init__(config, masked, epochs, seed)
        self.updates = 0

    @abstractmethod
    def update(self, moment: Moment) -> None:
        """Set new masks."""

    def on_epoch_start(self, moment: Moment) -> None:
        super().on_epoch_start(moment)
        for key, text in self.config.step_problems(moment.epochs, moment.steps_per_epoch):
            raise RecipeError(f"sparsity.{key}: {text}")

    def metrics(self) -> dict[str, float]:
        return super().metrics() | {"mask_updates": float(self.updates)}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.updates = state["updates"]

    def _update(self, moment: Moment) -> None:
        self.update(moment)
        self.updates += 1


class UpdatedBetweenSteps(Updated[ConfigT]):
    """The optimiser takes every step; an update at step t comes before it, and after the step t - 1.

    Between two epochs it waits until the model is validated. Within an epoch, one that would follow a bad step is left
    out.
    """

    def on_epoch_start(self, moment: Moment) -> None:
        super().on_epoch_start(moment)
        if self.config.updates_at(moment):
            self._update(moment)

    def after_step(self, moment: Moment) -> None:
        following = replace(moment, step=moment.step + 1)
        if following.step % following.steps_per_epoch == 0 or not self.config.updates_at(following):
            return
        # the one place where the host waits, and only at updates
        if self.masked.finite_gradients().item():
            self._update(following)
