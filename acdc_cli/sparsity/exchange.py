"""Drop and grow: an update drops some weights of a layer and grows as many others (arXiv 1911.11134)."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import ceil, cos, floor, pi

from torch import Tensor

from acdc_cli.recipe.blocks.base import Share
from acdc_cli.schedule.time import Moment
from acdc_cli.sparsity.distributions import proportional
from acdc_cli.sparsity.masked import MaskedParameters, count_zeros
from acdc_cli.sparsity.when import UpdateKeys
from acdc_cli.sparsity.where import largest


class ExchangeKeys(UpdateKeys):
    fraction: Share = 0.3
    """Share of a layer's living weights that an update exchanges at first; it falls to 0 along a half cosine."""

    def exchanged(self, moment: Moment) -> float:
        """Share of a layer's living weights that an update at this step exchanges: a/2 (1 + cos(pi t/T)) (P2 eq. 6)."""
        return self.fraction / 2 * (1 + cos(pi * moment.step / self.last_step(moment)))


def drop_and_grow(masked: MaskedParameters, share: float, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """New masks, each as dense as before: the smallest `share` of the living weights drop, the best scores grow.

    scores: one for each weight, masked or not, at least 0.
    """
    magnitudes, counts = masked.magnitudes(), living(masked.masks)
    dropped = {name: int(share * count) for name, count in counts.items()}
    return {
        name: exchange(magnitudes[name], scores[name], count - dropped[name], dropped[name])
        for name, count in counts.items()
    }


def exchange(magnitudes: Tensor, scores: Tensor, kept: int, grown: int) -> Tensor:
    """The mask of a layer whose `kept` largest weights stay and in which `grown` others grow.

    magnitudes: |w|, and less than 0 where masked.  scores: at least 0.
    The candidates for growth are all weights but those that stay (arXiv 1911.11134, section 3, "Grow criterion"),
    including those just dropped. A dropped weight that grows again keeps its value, as in the paper's own code.
    """
    stay = largest(magnitudes.flatten(), kept)
    grow = largest(scores.flatten().masked_fill(stay, -1), grown)
    return (stay | grow).view(magnitudes.shape)


def living(masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Living weights of each layer, with one fetch from the device."""
    zeros = count_zeros(list(masks.values()))
    return {name: mask.numel() - count for (name, mask), count in zip(masks.items(), zeros, strict=True)}


def dropped_by_layer(
    share: float, living: Mapping[str, int], sizes: Mapping[str, int], momentum: Mapping[str, float]
) -> dict[str, int]:
    """Weights that each layer of SNFS drops: this share of its living weights.

    A layer that is less than a fifth sparse and whose mean |momentum| is above the average of the layers drops at most
    a share equal to its sparsity, as in the authors' code (`adjust_prune_rate`).
    """
    average = sum(momentum.values()) / len(momentum)

    def limit(name: str, count: int) -> int:
        missing = sizes[name] - count
        growing = momentum[name] > average and 5 * missing < sizes[name]
        return ceil(Fraction(missing * count, sizes[name])) if growing else count

    return {name: min(int(share * count), limit(name, count)) for name, count in living.items()}


def regrowth(dropped: Mapping[str, int], momentum: Mapping[str, float], room: Mapping[str, int]) -> dict[str, int]:
    """Weights that grow in each layer: as many in total as dropped, in proportion to the layers' mean |momentum|.

    room: at least as many as the layer dropped. Weights that a layer has no room for go to the others, in the same
    proportion; once all layers with momentum are full, the rest goes to those without, in proportion to what they
    dropped. Counts are rounded by largest remainders; of equal remainders the first is rounded up.
    """
    total = sum(dropped.values())
    moving = {name: Fraction(mean) for name, mean in momentum.items() if mean > 0}
    resting = {name: count for name, count in dropped.items() if name not in moving}
    taken = min(total, sum(room[name] for name in moving))
    shares = proportional(moving, room, taken) | proportional(resting, room, total - taken)
    counts = {name: floor(shares[name]) for name in room}
    by_remainder = sorted(room, key=lambda name: counts[name] - shares[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
