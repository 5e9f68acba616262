"""What methods share that drop some of a layer's weights and grow as many others (arXiv 1911.11134)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from math import cos, pi
from typing import TypeVar

from torch import Tensor

from acdc_cli.recipe.schema import Share
from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.selection import largest
from acdc_cli.sparsity.updates import Updated, UpdatedBlock


class RewiredBlock(UpdatedBlock):
    fraction: Share = 0.3
    """Share of a layer's living weights that is exchanged at first; it falls to 0 along half a cosine until `end`."""

    def exchanged(self, moment: Moment) -> float:
        """Share of a layer's living weights that an update at this step exchanges: a/2 (1 + cos(pi t/T)) (P2 eq. 6)."""
        return self.fraction / 2 * (1 + cos(pi * moment.step / self.last_step(moment)))


ConfigT = TypeVar("ConfigT", bound=RewiredBlock)


class Rewiring(Updated[ConfigT]):
    """A method says by `growth_scores` which weights grow; all the rest is here.

    At an update the weights themselves take no step.
    """

    @abstractmethod
    def growth_scores(self, moment: Moment) -> Mapping[str, Tensor]:
        """For each weight, masked or not, a score of at least 0; the largest of the masked ones grow."""

    def on_gradients(self, moment: Moment) -> bool:
        # the one place where the host waits, and only at updates
        if not self.config.updates_at(moment) or not self.masked.finite_gradients().item():
            return super().on_gradients(moment)
        self._update(moment)
        return False

    def update(self, moment: Moment) -> None:
        living = self.selector.counts(self.masked.shapes, self.config.target)
        assert living is not None, "every layer has a count of its own: there is no global distribution"
        dropped = {name: int(self.config.exchanged(moment) * count) for name, count in living.items()}
        magnitudes, scores = self.masked.magnitudes(), self.growth_scores(moment)
        self.masked.set(
            {
                name: exchange(magnitudes[name], scores[name], count - dropped[name], dropped[name])
                for name, count in living.items()
            }
        )


def exchange(magnitudes: Tensor, scores: Tensor, kept: int, grown: int) -> Tensor:
    """The mask of a layer whose `kept` largest weights stay and in which `grown` others grow.

    magnitudes: |w|, and less than 0 where masked.  scores: at least 0.
    The candidates for growth are all weights but those that stay (arXiv 1911.11134, section 3, "Grow criterion"), so
    also those just dropped. One of these that grows again has, as in the paper's own code, never been away: it keeps
    its value.
    """
    stay = largest(magnitudes.flatten(), kept)
    grow = largest(scores.flatten().masked_fill(stay, -1), grown)
    return (stay | grow).view(magnitudes.shape)
