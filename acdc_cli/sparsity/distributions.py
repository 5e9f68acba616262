"""How many weights are kept: exact counts for all layers together or for each layer."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import floor

from acdc_cli.recipe.blocks.base import part_of


def kept_count(weights: int, sparsity: float | Fraction) -> int:
    """(1 - sparsity) · weights, rounded to the nearest whole number, halves up.

    Computed in decimals, as the recipe writes the sparsity: 0.9 of 5 weights leaves 0.5, so 1; in binary, 0.4999….
    """
    return part_of(1 - Fraction(str(sparsity)), weights)


def kept_per_layer(sizes: Mapping[str, int], sparsity: float | Fraction) -> dict[str, int]:
    """Weights that each layer keeps at the same sparsity, each count rounded by itself ("uniform")."""
    return {name: kept_count(size, sparsity) for name, size in sizes.items()}


def proportional(claims: Mapping[str, int | Fraction], room: Mapping[str, int], total: int) -> dict[str, Fraction]:
    """Share of `total` for each layer, in proportion to its claim and at most its room.

    A layer whose share exceeds its room gets its room, and the rest is divided again among the other layers until every
    share fits. If all claims are zero, so are the shares.
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
    """Each layer's share of `kept` weights by Erdős-Rényi-Kernel (RigL, arXiv 1911.11134, 3.1), before rounding.

    A layer's density is eps · (sum of its weight's dimensions / their product), so it keeps eps · sum weights. A layer
    that would keep more weights than it has stays dense, and eps is solved again for the others.
    """
    return proportional(dimensions, sizes, kept)


def kept_erk(dimensions: Mapping[str, int], sizes: Mapping[str, int], sparsity: float | Fraction) -> dict[str, int]:
    """`erk_shares` as whole counts that add up to `kept_count` of all weights; no layer keeps more than it has.

    dimensions: sum of the dimensions of each layer's weight. Shares are rounded to the nearest whole number; the
    difference to the total is then added or removed one weight at a time, where it changes the proportions least
    (Sainte-Laguë). Unlike with largest remainders, no layer gains a weight when the sparsity rises, so a weight that a
    ramp has pruned never returns.
    """
    total = kept_count(sum(sizes.values()), sparsity)
    counts = {name: floor(share + Fraction(1, 2)) for name, share in erk_shares(dimensions, sizes, total).items()}

    def claim(name: str, weight: int) -> Fraction:
        return dimensions[name] / (weight - Fraction(1, 2))

    while (missing := total - sum(counts.values())) > 0:
        open_layers = [name for name in sizes if counts[name] < sizes[name]]
        counts[max(open_layers, key=lambda name: claim(name, counts[name] + 1))] += 1
    for _ in range(-missing):
        # of equal claims the last loses, as in a ranking of weights
        living_layers = [name for name in sizes if counts[name]][::-1]
        counts[min(living_layers, key=lambda name: claim(name, counts[name]))] -= 1
    return counts
