"""The cost of pruning a weight by the inverse of the empirical Fisher matrix, and how the others compensate for it.

F = λI + 1/N Σ g gᵀ over N gradients g approximates the Hessian of the loss (WoodFisher, arXiv 2004.14340).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor
from torch.nn.functional import pad

from acdc_cli.errors import RunError

Gradients = Callable[[], Iterator[Mapping[str, Tensor]]]
"""Yields the same N gradients at every call, each by layer and in the shapes of the weights."""


class InverseFisher:
    """The diagonal blocks of F^-1 for a vector of weights: weights · block numbers, whatever the number of gradients.

    Computed by Woodbury's recurrence (2004.14340, section 3): starting from I/λ, each gradient g subtracts
    v vᵀ / (N + gᵀv), where v = F^-1 g.
    """

    def __init__(self, weights: Tensor, block: int, damping: float, samples: int) -> None:
        """weights: (weights,); the last block holds the remainder.  damping: λ > 0.  samples: N."""
        self._weights = weights
        self._samples = samples
        self._side = min(block, weights.numel())
        blocks = -(-weights.numel() // self._side)
        identity = torch.eye(self._side, dtype=weights.dtype, device=weights.device)
        self._inverse = (identity / damping).repeat(blocks, 1, 1)
        self._fisher_diagonal = torch.full_like(weights, damping)

    def add(self, gradient: Tensor) -> None:
        """gradient: (weights,), one of the N."""
        rows = self._rows(gradient)
        # F^-1 is symmetric, and a row times a matrix runs several times faster than the matrix times a column
        v = torch.bmm(rows, self._inverse)
        # gᵀv is negative only by rounding
        v /= (self._samples + torch.bmm(v, rows.mT)).clamp_min_(self._samples).sqrt_()
        self._inverse.addcmul_(v.mT, v, value=-1)
        self._fisher_diagonal.addcmul_(gradient, gradient, value=1 / self._samples)

    def diagonal(self) -> Tensor:
        """[F^-1]_qq: (weights,), never less than 1 / F_qq.

        That bound holds for the exact inverse; rounding may break it where gradients are large.
        """
        return self._vector(self._inverse.diagonal(dim1=1, dim2=2)).maximum(1 / self._fisher_diagonal)

    def scores(self) -> Tensor:
        """ρ_q = w_q² / (2 [F^-1]_qq), the rise of the loss when w_q is pruned: (weights,)."""
        return self._weights.square() / (2 * self.diagonal())

    def least_damping(self) -> Tensor:
        """The damping below which rounding swamps F^-1: the machine epsilon times the largest trace of a block.

        The recurrence arrives at numbers as small as 1 / trace(F) from numbers as large as 1/λ.
        """
        return torch.finfo(self._weights.dtype).eps * self._rows(self._fisher_diagonal).sum(dim=2).max()

    def compensation(self, pruned: Tensor) -> Tensor:
        """The change of the weights, δw = -Σ w_q F^-1 e_q / [F^-1]_qq over the pruned weights, which become zero.

        It sums the changes that are best for each pruned weight alone (2004.14340, section 4).
        pruned: (weights,), boolean.  Returns (weights,).
        """
        shares = (self._weights / self.diagonal()).where(pruned, 0)
        return torch.where(pruned, -self._weights, -self._vector(torch.bmm(self._rows(shares), self._inverse)))

    def _rows(self, vector: Tensor) -> Tensor:
        """(weights,) to (blocks, 1, side); zeros pad the last block, and change nothing."""
        filled = len(self._inverse) * self._side
        return pad(vector, (0, filled - vector.numel())).view(-1, 1, self._side)

    def _vector(self, rows: Tensor) -> Tensor:
        return rows.flatten()[: self._weights.numel()]


@dataclass(frozen=True)
class Stretch:
    """Consecutive weights of a layer, in whole blocks."""

    layer: str
    start: int
    end: int


class Fisher:
    """Scores and compensation of all layers, computed in groups of blocks whose F^-1 fits a memory budget.

    Each group takes one pass over the gradients for the scores and one for the compensation, except the last, whose
    F^-1 is kept. No weight may change before both are known, because that would change the gradients.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        gradients: Gradients,
        *,
        samples: int,
        block: int,
        damping: float,
        budget: int,
    ) -> None:
        """samples: N.  block: weights in a block of F.  damping: λ.  budget: bytes for F^-1.

        Raises ValueError if not even one block fits the budget. The methods raise RunError if λ is too small for the
        gradients.
        """
        self._weights = {name: weight.flatten() for name, weight in weights.items()}
        self._shapes = {name: weight.shape for name, weight in weights.items()}
        self._gradients, self._samples, self._block, self._damping = gradients, samples, block, damping
        self._groups = _groups_within(budget, weights, block)
        self._held: dict[Stretch, InverseFisher] = {}

    def scores(self) -> dict[str, Tensor]:
        """ρ of every weight."""
        return self._gather(self._groups, lambda _, inverse: inverse.scores())

    def compensation(self, pruned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The change of the weights that zeroes the pruned ones and lets the others compensate."""
        vectors = {name: mask.flatten() for name, mask in pruned.items()}
        return self._gather(
            reversed(self._groups),
            lambda part, inverse: inverse.compensation(vectors[part.layer][part.start : part.end]),
        )

    def _gather(
        self, order: Iterable[list[Stretch]], of: Callable[[Stretch, InverseFisher], Tensor]
    ) -> dict[str, Tensor]:
        gathered = {name: torch.empty_like(weight) for name, weight in self._weights.items()}
        for group in order:
            self._hold(group)
            for part in group:
                gathered[part.layer][part.start : part.end] = of(part, self._held[part])
        return {name: vector.view(self._shapes[name]) for name, vector in gathered.items()}

    def _hold(self, group: list[Stretch]) -> None:
        """Compute F^-1 of this group, and free that of any other."""
        if list(self._held) == group:
            return
        # before the new ones are made: there is room for one group
        self._held = {}
        self._held = {
            part: InverseFisher(
                self._weights[part.layer][part.start : part.end], self._block, self._damping, self._samples
            )
            for part in group
        }
        # not enumerate, whose tuple would hold a second gradient
        numbers = count(1)
        for gradient in self._gradients():
            number = next(numbers)
            for part, inverse in self._held.items():
                inverse.add(gradient[part.layer].flatten()[part.start : part.end])
            # before the next one is made: one of them is as large as the model
            del gradient
            # the least damping only grows: one that is far too small is refused early, with few waits for the device
            if number & (number - 1) == 0:
                self._require_damping()
        self._require_damping()

    def _require_damping(self) -> None:
        """Raises RunError if the damping is too small for the gradients so far."""
        least = float(torch.stack([inverse.least_damping() for inverse in self._held.values()]).max())
        if not least < self._damping:
            raise RunError(
                f"sparsity.damping: {self._damping:g} is too small for gradients this large: below {least:.2g}, "
                f"rounding swamps the inverse. Use at least {10 * least:.2g}"
            )


def passes(weights: Mapping[str, Tensor], block: int, budget: int) -> int:
    """Passes over the gradients that scores and compensation take together.

    Raises ValueError if not even one block fits the budget.
    """
    return 2 * len(_groups_within(budget, weights, block)) - 1


def _groups_within(budget: int, weights: Mapping[str, Tensor], block: int) -> list[list[Stretch]]:
    widest = max(weight.element_size() for weight in weights.values())
    sizes = {name: weight.numel() for name, weight in weights.items()}
    return groups(sizes, block, budget // widest)


def groups(sizes: Mapping[str, int], block: int, numbers: int) -> list[list[Stretch]]:
    """All weights of all layers in order, in groups whose F^-1 takes at most `numbers` numbers.

    sizes: weights of each layer.  A layer smaller than a block is a block of its own.
    Raises ValueError if a single block takes more.
    """
    if max(min(block, size) for size in sizes.values()) ** 2 > numbers:
        raise ValueError(f"a block of {block} weights takes {block**2} numbers, but there is room for only {numbers}")
    split: list[list[Stretch]] = [[]]
    room = numbers
    for layer, size in sizes.items():
        side, start = min(block, size), 0
        while start < size:
            blocks = min(room // side**2, -(-(size - start) // side))
            end = min(start + blocks * side, size)
            if blocks:
                split[-1].append(Stretch(layer, start, end))
                room -= blocks * side**2
            else:
                split.append([])
                room = numbers
            start = end
    return split
