"""A set to which models are transferred, and how they are trained on it.

A kind of inputs that transfer works on is one file of `targets/`, with a class `Target`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from acdc_cli.data.data_set import DataSet
from acdc_cli.errors import RecipeError
from acdc_cli.recipe.blocks.data import DataBlock
from acdc_cli.recipe.discovery import TARGETS
from acdc_cli.recipe.schema import Recipe


@dataclass(frozen=True)
class Hyperparameters:
    """The keys of a recipe that make up a protocol."""

    epochs: int
    batch_size: int
    optim: Mapping[str, Any]
    """All but the schedule."""
    schedule: Callable[[int], dict[str, Any]]
    """For this many epochs."""


def by_sgd(lr: float) -> Hyperparameters:
    """The protocol of Iofinova et al. (2022), which P2 E follows; the rate drops at a third and at two thirds."""
    epochs, drops = 150, (50, 100)

    def schedule(asked: int) -> dict[str, Any]:
        milestones = [drop for drop in dict.fromkeys(asked * drop // epochs for drop in drops) if drop]
        return {"name": "step", "milestones": milestones}

    optim = {"name": "sgd", "lr": lr, "momentum": 0.9, "weight_decay": 5e-4, "decay_norm_and_bias": True}
    return Hyperparameters(epochs, 64, optim, schedule)


@dataclass(frozen=True)
class Target(ABC):
    """A downstream set."""

    name: str
    data: DataSet
    metrics: tuple[str, ...]
    """Keys of `aie.METRICS`; the first is the one of AIE."""
    finetuning: Hyperparameters
    """How all weights are trained."""

    linear: ClassVar[Hyperparameters] = by_sgd(0.01)
    """How a new classifier on fixed features is trained."""

    @classmethod
    @abstractmethod
    def open(cls, to: str, upstream: Recipe) -> Self:
        """to: a folder, or a name of `acdc data list`.  upstream: a recipe of the models that are transferred.

        Raises DataError if there is no such set, or a split is missing.
        """

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Fingerprint of the samples, apart from their preparation."""
        return self.data.fingerprint

    @abstractmethod
    def blocks(self, upstream: Recipe) -> dict[str, dict[str, Any]]:
        """The blocks `task` and `data` of a downstream recipe, which prepares samples as the upstream one does."""

    @abstractmethod
    def preparation(self, block: DataBlock) -> dict[str, Any]:
        """What decides over a sample's inputs, apart from its content."""

    @abstractmethod
    def used(self, block: DataBlock) -> int:
        """Training samples that the block uses."""


def open_target(to: str, upstream: Recipe) -> Target:
    """`Target.open` of the kind of inputs that the upstream recipe has. Raises RecipeError if there is none."""
    kind = upstream.data.inputs
    if kind not in TARGETS.names():
        raise RecipeError(
            f"acdc transfer takes models of {' and '.join(TARGETS.names())}, and {upstream.name} is a recipe on {kind}"
        )
    opened: Target = TARGETS.module(kind).Target.open(to, upstream)
    return opened
