"""SET: drop the smallest weights, grow others at random (arXiv 1707.04780)."""

from __future__ import annotations

from torch import Tensor

from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.random_start import random_scores
from acdc_cli.sparsity.rewiring import RewiredBlock, Rewiring


class Config(RewiredBlock):
    """No keys of its own: updates and their cosine are RigL's, so that only the growth differs."""


class Method(Rewiring[Config]):
    def growth_scores(self, moment: Moment) -> dict[str, Tensor]:
        return random_scores(self.masked.parameters, self.seed, moment.step)
