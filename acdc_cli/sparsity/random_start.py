"""Training that is sparse from the first step, with random masks."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from acdc_cli.recipe.blocks.base import Distribution
from acdc_cli.recipe.blocks.sparsity import TargetBlock
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.sparsity.where import Selector
from acdc_cli.sparsity.which import random_scores


class RandomStartKeys(TargetBlock):
    distribution: Distribution = "erk"
    """`uniform`: the same sparsity in every layer. `erk`: layers with more weights are sparser."""

    @model_validator(mode="after")
    def _knows_its_counts(self) -> Self:
        if self.distribution == "global":
            raise ValueError(
                "distribution: global ranks all weights by magnitude, but the masks are random; "
                "use uniform or erk, which set a count for each layer"
            )
        return self


def start_at_random(masked: MaskedParameters, selector: Selector, sparsity: float, seed: int) -> None:
    """Set random masks with the selector's count of weights in each layer."""
    masked.set(selector.masks(random_scores(masked.parameters, seed, step=0), sparsity))
