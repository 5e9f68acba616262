"""What pruning a weight costs by the inverse of the empirical Fisher matrix, and how the others make up for it.

F = λI + 1/N Σ g gᵀ over N gradients g stands for the Hessian of the loss (WoodFisher, arXiv 2004.14340).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from acdc_cli.errors import RunError

Gradients = Callable[[], Iterator[Mapping[str, Tensor]]]
"""Starts the same N gradients anew, each by layer and in the shapes of the weights."""


class InverseFisher:
    """F^-1 of a vector of weights in blocks on its diagonal: weights · block numbers, however many gradients.

    By Woodbury's recurrence (2004.14340, section 3): from I/λ on, each gradient g takes v vᵀ / (N + gᵀv) away, where
    v = F^-1 g.
    """

    def __init__(self, weights: Tensor, block: int, damping: float, samples: int) -> None:
        """weights: (weights,), of which the last block takes what is left.  damping: λ > 0.  samples: N."""
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
        # gᵀv is never negative, but for rounding
        v /= (self._samples + torch.bmm(v, rows.mT)).clamp_min_(self._samples).sqrt_()
        self._inverse.addcmul_(v.mT, v, value=-1)
        self._fisher_diagonal.addcmul_(gradient, gradient, value=1 / self._samples)

    def diagonal(self) -> Tensor:
        """[F^-1]_qq: (weights,), never less than 1 / F_qq.

        No inverse has less, but rounding may leave nothing of 1/λ where gradients are large.
        """
        return self._vector(self._inverse.diagonal(dim1=1, dim2=2)).maximum(1 / self._fisher_diagonal)

    def scores(self) -> Tensor:
        """ρ_q = w_q² / (2 [F^-1]_qq), by how much the loss rises when w_q is pruned: (weights,)."""
        return self._weights.square() / (2 * self.diagonal())

    def least_damping(self) -> Tensor:
        """The damping below which nothing of F^-1 is certain: the machine epsilon times the largest trace of a block.

        The recurrence takes numbers as small as 1 / trace(F) from numbers as large as 1/λ.
        """
        return torch.finfo(self._weights.dtype).eps * self._rows(self._fisher_diagonal).sum(dim=2).max()

    def compensation(self, pruned: Tensor) -> Tensor:
        """What to add to the weights: δw = -Σ w_q F^-1 e_q / [F^-1]_qq over the pruned, which become zero.

        The sum of what would be best for each of the pruned alone (2004.14340, section 4).
        pruned: (weights,), boolean.  Returns (weights,).
        """
        shares = (self._weights / self.diagonal()).where(pruned, 0)
        return torch.where(pruned, -self._weights, -self._vector(torch.bmm(self._rows(shares), self._inverse)))

    def _rows(self, vector: Tensor) -> Tensor:
        """(weights,) to (blocks, 1, side); zeros fill up the last one, and change nothing."""
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
    """Scores and compensation of all layers, in groups whose F^-1 fit a budget of memory.

    Each group takes a pass over the gradients, once for the scores and once more for the compensation, but for the last
    one, whose F^-1 is still there. No weight may change before both are known: that would change the gradients.
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

        Raises ValueError if not even one block fits the budget. The methods raise RunError if λ is too small for what
        the gradients are.
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
        """What to add to the weights, so that these become zero and the others make up for them."""
        vectors = {name: mask.flatten() for name, mask in pruned.items()}
        return self._gather(
            reversed(self._groups),
            lambda part, inverse: inverse.compensation(vectors[part.layer][part.start : part.end]),
        )

    def _gather(
        self, order: Iterable[list[Stretch]], of: Callable[[Stretch, InverseFisher], Tensor]
    ) -> dict[str, Tensor]:
        found = {name: torch.empty_like(weight) for name, weight in self._weights.items()}
        for group in order:
            self._hold(group)
            for part in group:
                found[part.layer][part.start : part.end] = of(part, self._held[part])
        return {name: vector.view(self._shapes[name]) for name, vector in found.items()}

    def _hold(self, group: list[Stretch]) -> None:
        """Have F^-1 of this group, and of no other."""
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
        for gradient in self._gradients():
            for part, inverse in self._held.items():
                inverse.add(gradient[part.layer].flatten()[part.start : part.end])
            # before the next one is made: one of them is as large as the model
            del gradient
        least = torch.stack([inverse.least_damping() for inverse in self._held.values()]).max().item()
        if not least < self._damping:
            raise RunError(
                f"sparsity.damping: {self._damping:g} is too small for gradients this large: below {least:.2g}, "
                "rounding leaves nothing of the inverse. Make it ten times as large as that, or more"
            )


def passes(weights: Mapping[str, Tensor], block: int, budget: int) -> int:
    """Over the gradients, of scores and compensation together.

    Raises ValueError if not even one block fits the budget.
    """
    return 2 * len(_groups_within(budget, weights, block)) - 1


def _groups_within(budget: int, weights: Mapping[str, Tensor], block: int) -> list[list[Stretch]]:
    widest = max(weight.element_size() for weight in weights.values())
    sizes = {name: weight.numel() for name, weight in weights.items()}
    return groups(sizes, block, budget // widest)


def groups(sizes: Mapping[str, int], block: int, numbers: int) -> list[list[Stretch]]:
    """Every weight of every layer once, in order; the F^-1 of a group has at most so many numbers.

    sizes: weights of each layer.  A layer smaller than a block is a block of its own.
    Raises ValueError if not even one block has so few.
    """
    if max(min(block, size) for size in sizes.values()) ** 2 > numbers:
        raise ValueError(f"a block of {block} weights takes {block**2} numbers, and there is room for {numbers}")
    found: list[list[Stretch]] = [[]]
    room = numbers
    for layer, size in sizes.items():
        side, start = min(block, size), 0
        while start < size:
            blocks = min(room // side**2, -(-(size - start) // side))
            end = min(start + blocks * side, size)
            if blocks:
                found[-1].append(Stretch(layer, start, end))
                room -= blocks * side**2
            else:
                found.append([])
                room = numbers
            start = end
    return found
