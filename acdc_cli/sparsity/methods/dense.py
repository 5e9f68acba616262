"""Dense training, the baseline: nothing is pruned."""

from __future__ import annotations

from acdc_cli.recipe.blocks.sparsity import SparsityBlock
from acdc_cli.sparsity.sparsifier import Sparsifier


class Config(SparsityBlock):
    """No keys of its own."""


class Method(Sparsifier[Config]):
    """The hooks' defaults are all that it takes."""
