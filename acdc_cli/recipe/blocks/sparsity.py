"""The block `sparsity` of a recipe: the keys that methods share; each method's file adds its own."""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from acdc_cli.errors import RecipeError
from acdc_cli.recipe.blocks.base import Block, Distribution, RunSize, Sparsity


class SparsityBlock(Block):
    """The keys of every method; each method's file adds its own."""

    method: str
    """Sparse-training method: the name of a file in `acdc_cli/sparsity/methods`."""
    at_once: ClassVar[Mapping[str, Any] | None] = None
    """The keys with which the method prunes a trained model at the start of a run, as `acdc prune` does; None for a
    method that prunes in the course of training."""

    @classmethod
    def proposed(cls, run: RunSize, target: float) -> dict[str, Any]:
        """The keys, besides method and target, with which `acdc init` begins a recipe for a run of this size."""
        return {}

    def require(self, run: RunSize) -> None:
        """Raises RecipeError, with a line for each error."""
        if errors := self.errors(run):
            raise RecipeError("\n".join(f"sparsity.{key}: {text}" for key, text in errors))

    def warnings(self, run: RunSize) -> list[tuple[str, str]]:
        """(key, message) for everything that can run but is probably a mistake."""
        return [(key, text) for key, text, stops in self.check(run) if not stops]

    def clock(self, progress: float, epochs: int) -> tuple[float, int]:
        """The elapsed epochs and all epochs, as the learning rate and the resolution count them.

        They are the run's own, except for a method that trains several times: its clock restarts each time.
        """
        return progress, epochs


class PrunedBlock(SparsityBlock):
    """The keys of every method that prunes."""

    keep_dense: list[str] = []
    """Layers that are never pruned: `first`, `last`, `depthwise`, `embeddings`, or patterns of layer names such as
    `layer4.*`."""
    from_checkpoint: str | None = None
    """Start from a trained dense model: that of a run directory, or a weight file as in `model.weights`."""

    @classmethod
    def proposed(cls, run: RunSize, target: float) -> dict[str, Any]:
        return super().proposed(run, target) | {"keep_dense": ["first", "last"]}


class TargetBlock(PrunedBlock):
    """The keys of every method with a target sparsity."""

    target: Sparsity
    """Fraction of the prunable weights that is zero at the end: 0.95, never 95."""
    distribution: Distribution = "global"
    """`global`: one ranking of all weights. `uniform`: the same sparsity in every layer. `erk`: layers whose weight has
    small dimensions stay denser (Erdős-Rényi-Kernel). N:M patterns are always uniform."""
    pattern: Annotated[
        str,
        Field(
            pattern=r"^(unstructured|[1-9]\d{0,2}:[1-9]\d{0,2}|block([2-9]|[1-9]\d{1,2}))$",
            json_schema_extra={"expected": "unstructured, N:M such as 2:4, or blocks such as block4"},
        ),
    ] = "unstructured"
    """`2:4`, or any N:M, keeps the 2 largest of every 4 consecutive input channels; `block4` keeps or drops 4 of them
    together, by their mean magnitude. A layer whose input channels are not a multiple of 4 stays dense."""
    layers: dict[str, Sparsity] = {}
    """Sparsities of single layers, by patterns of layer names (`"layer4.*": 0.98`); the first match wins. The target
    applies to the other layers."""

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """N and M of a pattern N:M; None for other patterns."""
        n, colon, m = self.pattern.partition(":")
        return (int(n), int(m)) if colon else None

    @property
    def block(self) -> int:
        """Consecutive input channels that are kept or dropped together."""
        return int(self.pattern.removeprefix("block")) if self.pattern.startswith("block") else 1

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.layers and not self.target:
            raise ValueError("layers: needs a target above 0; name layers that stay dense in keep_dense")
        if self.n_of_m is None:
            return self
        n, m = self.n_of_m
        if n >= m:
            raise ValueError(f"pattern: {self.pattern} prunes nothing; N of N:M must be smaller than M")
        if not isclose(self.target, 1 - n / m, abs_tol=1e-3):
            raise ValueError(
                f"target: {self.pattern} keeps {n} of every {m} weights, a sparsity of {1 - n / m:.4g}, found "
                f"{self.target:g}; write target: {1 - n / m:.4g}, or take another pattern"
            )
        fixes = f"{self.pattern} fixes the sparsity of every layer at {1 - n / m:.4g}"
        if self.distribution == "erk":
            raise ValueError(f"distribution: {fixes}, and erk gives each its own; leave one of them out")
        if self.layers:
            raise ValueError(f"layers: {fixes}, so none can have its own; leave one of them out")
        return self
