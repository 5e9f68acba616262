"""How many weights stay: exact counts, of all layers together or of each."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Literal

from acdc_cli.recipe.schema import part_of

Distribution = Literal["global", "uniform"]


def kept_count(weights: int, sparsity: float) -> int:
    """(1 - sparsity) · weights to the nearest whole number, halves up.

    In the decimals of the recipe: 0.9 of 5 weights leaves 0.5, so 1, where binary fractions say 0.4999….
    """
    return part_of(1 - Fraction(str(sparsity)), weights)


def kept_per_layer(sizes: Mapping[str, int], sparsity: float) -> dict[str, int]:
    """The same sparsity in every layer, each rounded for itself ("uniform")."""
    return {name: kept_count(size, sparsity) for name, size in sizes.items()}


def density(sizes: Mapping[str, int], sparsity: float, distribution: Distribution) -> float:
    """The share of all weights that stays, as exact as the counts."""
    total = sum(sizes.values())
    kept = kept_count(total, sparsity) if distribution == "global" else sum(kept_per_layer(sizes, sparsity).values())
    return kept / total
