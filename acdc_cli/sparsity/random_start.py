"""What methods share that train sparse from the first step: random masks, as many weights in a layer at every step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Self, TypeVar

import torch
from pydantic import model_validator
from torch import Tensor

from acdc_cli.recipe.schema import Distribution, TargetBlock
from acdc_cli.schedule.time import Moment, Phase, PhasePlan
from acdc_cli.sparsity.targeted import Targeted


class RandomStartBlock(TargetBlock):
    distribution: Distribution = "erk"
    """The same sparsity in every layer (`uniform`), or the sparser the more weights it has (`erk`)."""

    @model_validator(mode="after")
    def _knows_its_counts(self) -> Self:
        if self.distribution == "global":
            raise ValueError(
                "distribution: global ranks all weights by magnitude, but the masks are random; "
                "take uniform or erk, which count by layer"
            )
        return self


ConfigT = TypeVar("ConfigT", bound=RandomStartBlock)


class RandomStart(Targeted[ConfigT]):
    """Random masks before the first step, of the same counts in every layer for the same recipe."""

    def plan(self) -> PhasePlan:
        return PhasePlan((Phase("sparse", 0, self.epochs),))

    def on_epoch_start(self, moment: Moment) -> None:
        if moment.step == 0:
            scores = random_scores(self.masked.parameters, self.seed, step=0)
            self.masked.set(self.selector.masks(scores, self.config.target))


def random_scores(like: Mapping[str, Tensor], seed: int, step: int) -> dict[str, Tensor]:
    """Uniform in [0, 1), in the shapes of `like` and on its device.

    They follow from the seed, the step and the layer's name alone: the same on every rank, on every device and after
    every restart, and torch's global generator is left as it was.
    """
    return {
        name: torch.rand(weight.shape, generator=generator(seed, step, name)).to(weight.device)
        for name, weight in like.items()
    }


def generator(*facts: Any) -> torch.Generator:
    """Seeded with these facts (numbers and strings), the same in every process."""
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
