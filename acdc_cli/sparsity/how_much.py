"""How much is pruned over time: along a cubic (arXiv 1710.01878), or the same share in every round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from acdc_cli.recipe.blocks.base import Misfit


@dataclass(frozen=True)
class Cubic:
    """s(t) = s_f + (s_0 - s_f) (1 - (t - t_0) / (t_1 - t_0))^3 between the times t_0 and t_1 (eq. 1).

    `first` before t_0, and exactly `target` from t_1 on. Times in epochs or in steps.
    """

    begin: int
    end: int
    target: float
    first: float = 0.0

    def at(self, time: int) -> float:
        if time >= self.end:
            return self.target
        if time <= self.begin:
            return self.first
        elapsed = (time - self.begin) / (self.end - self.begin)
        return self.first + (self.target - self.first) * (1 - (1 - elapsed) ** 3)


def geometric(done: int, rounds: int, target: float) -> float:
    """1 - (1 - target)^(done / rounds): each round keeps the same share of the remaining weights. Exact at the end."""
    return target if done == rounds else 1 - (1 - target) ** (done / rounds)


def above_target(initial_sparsity: float, target: float) -> Iterator[Misfit]:
    if initial_sparsity > target:
        yield Misfit("initial_sparsity", f"is above the target, {target:g}; lower it")
