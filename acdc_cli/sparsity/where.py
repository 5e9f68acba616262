"""Where weights stay: a distribution over the layers and a pattern within them; counts are exact (P1 3.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from fractions import Fraction

import torch
from torch import Tensor

from acdc_cli import console
from acdc_cli.errors import ModelError
from acdc_cli.recipe.blocks.base import Distribution
from acdc_cli.recipe.blocks.sparsity import SparsityBlock, TargetBlock
from acdc_cli.sparsity import patterns
from acdc_cli.sparsity.distributions import kept_count, kept_erk, kept_per_layer
from acdc_cli.sparsity.prunable import layer_name, nearest

Shapes = Mapping[str, torch.Size]


def largest(scores: Tensor, count: int) -> Tensor:
    """Mask of the `count` largest of a vector of scores; of equal scores the first stay.

    A comparison `score > threshold` would keep or drop all equal scores.
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    # topk gives the right smallest score, but not which of several equal scores it took
    smallest = scores.topk(count, sorted=False).values.min()
    above, equal = scores > smallest, scores == smallest
    places = count - above.count_nonzero()
    return above | (equal & (equal.cumsum(0, dtype=torch.int32) <= places))


def warn_of_empty_layers(method: str, masks: Mapping[str, Tensor]) -> None:
    """Warn of layers that these final masks leave without weights."""
    if empty := [layer_name(name) for name, mask in masks.items() if not mask.any()]:
        console.warn(
            f"{method} leaves no weight in {len(empty)} of {len(masks)} layers, {', '.join(empty[:3])}"
            f"{', …' if len(empty) > 3 else ''}, so they pass no signal for the rest of the run; lower sparsity.target "
            "or set sparsity.distribution: erk"
        )


@dataclass(frozen=True)
class Living:
    """The weights that take part in a pass, as known before the run starts."""

    density: float | None
    """Their fraction of the prunable weights; None if the method learns it."""
    by_layer: Mapping[str, int] | None
    """Their number in each layer, by parameter name; None if scores decide it or the method learns it."""


@dataclass(frozen=True)
class Selector:
    """How a recipe spreads a sparsity over the layers, keyed by parameter name, and within them.

    Layers that the pattern does not fit stay dense; the sparsity applies to the others. With blocks, whole blocks are
    counted and rounded, so a count of weights is a multiple of the block's size.
    """

    target: float
    """The sparsity at which `layers` have their own sparsities; below it, these are lower in proportion."""
    distribution: Distribution
    layers: Mapping[str, float]
    """Sparsities of single layers, by pattern of layer names; the first match wins."""
    n_of_m: tuple[int, int] | None
    block: int
    """Consecutive input channels that are kept or dropped together."""
    _known: dict[tuple[tuple[str, torch.Size], ...], dict[float, Mapping[str, int]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Counts by shapes and sparsity, cached because ERK is slow and each epoch needs it several times."""

    @classmethod
    def of(cls, config: SparsityBlock) -> Selector:
        """The selector of a sparsity block; without a target, it serves a sparsity of 0 only."""
        if not isinstance(config, TargetBlock):
            return cls(0.0, "global", {}, None, 1)
        return cls(config.target, config.distribution, config.layers, config.n_of_m, config.block)

    def check(self, shapes: Shapes) -> None:
        """Raises ModelError if an entry of the recipe's `layers`, or its `pattern`, applies to none of these layers."""
        names = [layer_name(name) for name in shapes]
        matched = {self._match(name) for name in names}
        if unused := [pattern for pattern in self.layers if pattern not in matched]:
            raise ModelError(self._unused(unused, names))
        if shapes and len(self.left_dense(shapes)) == len(shapes):
            raise ModelError(
                f"sparsity.pattern: no layer's input channels are a multiple of {self._channels}, so nothing would be "
                "pruned; use another pattern or unstructured"
            )

    def left_dense(self, shapes: Shapes) -> list[str]:
        """The layers whose input channels do not split into the pattern's groups."""
        return [name for name, shape in shapes.items() if not patterns.fits(shape, self._channels)]

    def masks(self, scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Boolean masks, in the shapes of `scores`, of the largest scores.

        Of equal scores the first stay: by layer in the order of `scores`, then row-major within the layer, whatever the
        memory layout.
        """
        if not sparsity:
            return {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
        fixed = self._fixed({name: score.shape for name, score in scores.items()}, sparsity)
        ranked = self._ranked({name: score for name, score in scores.items() if name not in fixed}, sparsity)
        return {
            name: ranked[name] if name in ranked else self._mask(score, fixed[name]) for name, score in scores.items()
        }

    def living(self, shapes: Shapes, sparsity: float) -> Living:
        """The living weights under masks of this sparsity."""
        return Living(self.density(shapes, sparsity), self.counts(shapes, sparsity))

    def counts(self, shapes: Shapes, sparsity: float) -> dict[str, int] | None:
        """Weights that each layer keeps; None if a ranking across layers decides."""
        if not sparsity:
            return {name: shape.numel() for name, shape in shapes.items()}
        fixed = self._fixed(shapes, sparsity)
        return {name: fixed[name] for name in shapes} if fixed.keys() == shapes.keys() else None

    def density(self, shapes: Shapes, sparsity: float) -> float:
        """Fraction of all weights that is kept, computed from the exact counts."""
        if not sparsity:
            return 1.0
        fixed = self._fixed(shapes, sparsity)
        ranked = self._blocks({name: shape for name, shape in shapes.items() if name not in fixed})
        kept = sum(fixed.values()) + self.block * kept_count(sum(ranked.values()), sparsity)
        return kept / sum(shape.numel() for shape in shapes.values())

    @property
    def _channels(self) -> int:
        return self.n_of_m[1] if self.n_of_m else self.block

    def _blocks(self, shapes: Shapes) -> dict[str, int]:
        return {name: shape.numel() // self.block for name, shape in shapes.items()}

    def _fixed(self, shapes: Shapes, sparsity: float) -> Mapping[str, int]:
        """Weights kept in each layer whose count does not depend on the scores."""
        known = self._known.setdefault(tuple(shapes.items()), {})
        if sparsity not in known:
            known[sparsity] = self._solved(shapes, sparsity)
        return known[sparsity]

    def _solved(self, shapes: Shapes, sparsity: float) -> dict[str, int]:
        dense = {name: shapes[name].numel() for name in self.left_dense(shapes)}
        pruned = {name: shape for name, shape in shapes.items() if name not in dense}
        if self.n_of_m:
            assert sparsity == self.target  # the pattern has no other: methods that need one refuse it
            n, m = self.n_of_m
            return dense | {name: shape.numel() * n // m for name, shape in pruned.items()}
        blocks = self._blocks(pruned)
        own = self._own_sparsities(pruned, sparsity)
        rest = {name: count for name, count in blocks.items() if name not in own}
        kept = {name: kept_count(blocks[name], own_sparsity) for name, own_sparsity in own.items()}
        if self.distribution == "uniform":
            kept |= kept_per_layer(rest, sparsity)
        elif self.distribution == "erk":
            kept |= kept_erk({name: sum(shapes[name]) for name in rest}, rest, sparsity)
        return dense | {name: count * self.block for name, count in kept.items()}

    def _mask(self, score: Tensor, count: int) -> Tensor:
        """Mask of a single layer. If all its weights are kept, the pattern need not fit."""
        if count == score.numel():
            return torch.ones_like(score, dtype=torch.bool)
        if self.n_of_m:
            return patterns.n_of_m(score, *self.n_of_m)
        score = patterns.block_means(score, self.block)
        mask = largest(score.flatten(), count // self.block).view(score.shape)
        return patterns.whole_blocks(mask, self.block)

    def _ranked(self, scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Masks of several layers from one ranking."""
        if not scores:
            return {}
        means = {name: patterns.block_means(score, self.block) for name, score in scores.items()}
        flat = torch.cat([mean.flatten() for mean in means.values()])
        mask = largest(flat, kept_count(flat.numel(), sparsity))
        parts = torch.split_with_sizes(mask, [mean.numel() for mean in means.values()])
        return {
            name: patterns.whole_blocks(part.view(mean.shape), self.block)
            for (name, mean), part in zip(means.items(), parts, strict=True)
        }

    def _own_sparsities(self, names: Iterable[str], sparsity: float) -> dict[str, Fraction]:
        """Sparsities of the layers that `layers` names when the run has this sparsity on its way to the target."""
        if not self.layers:
            return {}
        progress = Fraction(str(sparsity)) / Fraction(str(self.target))
        patterns_of = {name: self._match(layer_name(name)) for name in names}
        return {
            name: Fraction(str(self.layers[pattern])) * progress
            for name, pattern in patterns_of.items()
            if pattern is not None
        }

    def _match(self, layer: str) -> str | None:
        return next((pattern for pattern in self.layers if fnmatchcase(layer, pattern)), None)

    def _unused(self, unused: list[str], names: list[str]) -> str:
        late = [pattern for pattern in unused if any(fnmatchcase(name, pattern) for name in names)]
        nowhere = [pattern for pattern in unused if pattern not in late]
        reasons = []
        if nowhere:
            near = ", ".join(nearest(nowhere, names))
            reasons.append(f"{', '.join(map(repr, nowhere))} matches no pruned layer; nearest: {near}")
        if late:
            reasons.append(f"{', '.join(map(repr, late))} comes after a pattern that matches its layers; put it first")
        return f"sparsity.layers: {'; '.join(reasons)}"
