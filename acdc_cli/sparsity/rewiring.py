"""What methods share that drop some of a layer's weights and grow as many others, time and again (arXiv 1911.11134)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import cos, pi
from typing import Any, Self, TypeVar

from pydantic import PositiveInt, model_validator
from torch import Tensor

from acdc_cli.errors import RecipeError
from acdc_cli.recipe.schema import Epochs, Share, epochs_of
from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.masks import MaskedParameters
from acdc_cli.sparsity.random_start import RandomStart, RandomStartBlock
from acdc_cli.sparsity.selection import largest


class RewiredBlock(RandomStartBlock):
    every: PositiveInt | None = None
    """Steps between two updates of the masks (RigL: 100). Either this or `every_epochs`."""
    every_epochs: PositiveInt | None = None
    """Epochs between two updates of the masks (P2 B: 1). Either this or `every`."""
    fraction: Share = 0.3
    """Share of a layer's living weights that is exchanged at the start; it falls to 0 along half a cosine …"""
    end: Epochs = "75%"
    """… until this epoch, given as a number or a share of the run. From there on the masks stay."""

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

    def interval(self, steps_per_epoch: int) -> int:
        """Steps between two updates."""
        return self.every or (self.every_epochs or 0) * steps_per_epoch

    def last_step(self, moment: Moment) -> int:
        """No update comes at this step of the run or after it."""
        return epochs_of(self.end, moment.epochs) * moment.steps_per_epoch

    def updates_at(self, moment: Moment) -> bool:
        """Are the masks updated at this step, instead of the weights?"""
        interval = self.interval(moment.steps_per_epoch)
        return 0 < moment.step < self.last_step(moment) and moment.step % interval == 0

    def exchanged(self, moment: Moment) -> float:
        """Share of a layer's living weights that an update at this step exchanges: a/2 (1 + cos(pi t/T)) (P2 eq. 6)."""
        return self.fraction / 2 * (1 + cos(pi * moment.step / self.last_step(moment)))


ConfigT = TypeVar("ConfigT", bound=RewiredBlock)


class Rewiring(RandomStart[ConfigT], ABC):
    """A method says by `growth_scores` which weights grow; all the rest is here.

    At an update the weights themselves take no step.
    """

    def __init__(self, config: ConfigT, masked: MaskedParameters, epochs: int, seed: int = 0) -> None:
        super().__init__(config, masked, epochs, seed)
        self.updates = 0

    @abstractmethod
    def growth_scores(self, moment: Moment) -> Mapping[str, Tensor]:
        """For each weight, masked or not, a score of at least 0; the largest of the masked ones grow."""

    def on_epoch_start(self, moment: Moment) -> None:
        super().on_epoch_start(moment)
        interval, last = self.config.interval(moment.steps_per_epoch), self.config.last_step(moment)
        if interval >= last:
            raise RecipeError(
                f"sparsity.every: the first update would be at step {interval}, but the updates end before step "
                f"{last} (epochs of {moment.steps_per_epoch} steps): make it smaller"
            )

    def on_gradients(self, moment: Moment) -> bool:
        # the one place where the host waits, and only at updates
        if not self.config.updates_at(moment) or not self.masked.finite_gradients().item():
            return super().on_gradients(moment)
        self._update(moment)
        self.updates += 1
        return False

    def metrics(self) -> dict[str, float]:
        return super().metrics() | {"mask_updates": float(self.updates)}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.updates = state["updates"]

    def _update(self, moment: Moment) -> None:
        living = self.selector.counts(self.masked.shapes, self.config.target)
        assert living is not None, "every layer has a count of its own: there is no global distribution"
        share, magnitudes, scores = self.config.exchanged(moment), self.masked.magnitudes(), self.growth_scores(moment)
        self.masked.set(
            {
                name: exchange(magnitudes[name], scores[name], count, int(share * count))
                for name, count in living.items()
            }
        )


def exchange(magnitudes: Tensor, scores: Tensor, living: int, exchanged: int) -> Tensor:
    """The mask of a layer after its `exchanged` smallest weights dropped and as many others grew.

    magnitudes: |w|, and less than 0 where masked; `living` weights are not.  scores: at least 0.
    The candidates for growth are all weights but those that stayed (arXiv 1911.11134, section 3, "Grow criterion"), so
    also those just dropped. One of these that grows again has, as in the paper's own code, never been away: it keeps
    its value.
    """
    kept = largest(magnitudes.flatten(), living - exchanged)
    grown = largest(scores.flatten().masked_fill(kept, -1), exchanged)
    return (kept | grown).view(magnitudes.shape)
