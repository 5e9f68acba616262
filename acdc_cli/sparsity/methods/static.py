"""Static sparse training, the baseline of all that choose their weights: a random mask that never changes."""

from __future__ import annotations

from acdc_cli.sparsity.random_start import RandomStart, RandomStartBlock


class Config(RandomStartBlock):
    """No keys of its own."""


class Method(RandomStart[Config]):
    """The random start is all that it takes."""
