"""How many weights stay: exact counts, of all layers together or of each."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import floor

from acdc_cli.recipe.schema import part_of


def kept_count(weights: int, sparsity: float | Fraction) -> int:
    """(1 - sparsity) · weights to the nearest whole number, halves up.

    In the decimals of the recipe: 0.9 of 5 weights leaves 0.5, so 1, where binary fractions say 0.4999….
    """
    return part_of(1 - Fraction(str(sparsity)), weights)


def kept_per_layer(sizes: Mapping[str, int], sparsity: float | Fraction) -> dict[str, int]:
    """The same sparsity in every layer, each rounded for itself ("uniform")."""
    return {name: kept_count(size, sparsity) for name, size in sizes.items()}


def proportional(claims: Mapping[str, int | Fraction], room: Mapping[str, int], total: int) -> dict[str, Fraction]:
    """What each layer gets of `total` in proportion to its claim, but no more than it has room for.

    A layer whose proportion exceeds its room is full, and the rest is shared out again among the others until none
    exceeds it. Where nobody claims anything, nobody gets anything.
    """
    full: set[str] = set()
    while rest := [name for name in claims if name not in full]:
        claimed = sum(claims[name] for name in rest)
        per_claim = (total - sum(room[name] for name in full)) / Fraction(claimed) if claimed else Fraction(0)
        over = {name for name in rest if per_claim * claims[name] > room[name]}
        if not over:
            break
        full |= over
    return {name: Fraction(room[name]) if name in full else per_claim * claims[name] for name in claims}


def erk_shares(dimensions: Mapping[str, int], sizes: Mapping[str, int], kept: int) -> dict[str, Fraction]:
    """What each layer keeps of `kept` weights under Erdős-Rényi-Kernel (RigL, arXiv 1911.11134, 3.1), before rounding.

    A density of eps · (sum of the weight's dimensions / product of them) is eps · sum weights. A layer that would keep
    more than all of its weights is dense, and eps is solved again for the others.
    """
    return proportional(dimensions, sizes, kept)


def kept_erk(dimensions: Mapping[str, int], sizes: Mapping[str, int], sparsity: float | Fraction) -> dict[str, int]:
    """Whole counts by `erk_shares` that add up to `kept_count` of all weights; no layer keeps more than it has.

    dimensions: sum of the dimensions of each layer's weight. Rounded to nearest; what is then amiss is given or taken
    one weight at a time where it tilts the proportions least (Sainte-Laguë). Unlike with largest remainders, no layer
    ever gains a weight when the sparsity rises: a weight that a ramp has pruned never comes back.
    """
    total = kept_count(sum(sizes.values()), sparsity)
    counts = {name: floor(share + Fraction(1, 2)) for name, share in erk_shares(dimensions, sizes, total).items()}

    def claim(name: str, weight: int) -> Fraction:
        return dimensions[name] / (weight - Fraction(1, 2))

    while (missing := total - sum(counts.values())) > 0:
        open_layers = [name for name in sizes if counts[name] < sizes[name]]
        counts[max(open_layers, key=lambda name: claim(name, counts[name] + 1))] += 1
    for _ in range(-missing):
        # of equal claims the last gives way, as in a ranking of weights
        living_layers = [name for name in sizes if counts[name]][::-1]
        counts[min(living_layers, key=lambda name: claim(name, counts[name]))] -= 1
    return counts
