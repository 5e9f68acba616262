"""The parts of a run: model, data, optimiser, method and settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from acdc_cli import memory
from acdc_cli.cost.training_cost import Measured
from acdc_cli.data.batches import Loader
from acdc_cli.recipe.blocks.data import DataBlock
from acdc_cli.recipe.blocks.images import ImagesBlock
from acdc_cli.recipe.blocks.optim import Optim
from acdc_cli.recipe.blocks.run import CheckpointBlock
from acdc_cli.sparsity.prunable import Layer
from acdc_cli.sparsity.sparsifier import Sparsifier
from acdc_cli.tasks.base.abstract_task import Task
from acdc_cli.training.distributed import ALONE, Ranks
from acdc_cli.training.ema import Average
from acdc_cli.training.evaluate import Forward, Probe
from acdc_cli.training.precision import Precision
from acdc_cli.training.random_state import random_state
from acdc_cli.training.teacher import Teacher


@dataclass(frozen=True)
class Parts:
    model: nn.Module
    forward: Forward
    optimizer: Optimizer
    sparsifier: Sparsifier[Any]
    layers: Sequence[Layer]
    task: Task
    precision: Precision
    train: Loader
    val: Loader
    epochs: int
    learning_rate: Callable[[float], float]
    """Maps elapsed epochs, fractions included, to the learning rate."""
    resolution: Callable[[int], int]
    """Maps the epoch to the side of the training crops, in pixels."""
    optim: Optim
    """Settings `accumulate`, `clip_norm` and `nan_patience`."""
    checkpoint: CheckpointBlock
    samples: type[DataBlock] = ImagesBlock
    """The kind of inputs, for the words in records and output."""
    log_every: int = 50
    """Steps between two fetches of the losses."""
    eval_every: int = 1
    """Epochs between two validations."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Written into the header of every saved model."""
    probes: Sequence[Probe] = ()
    """Evaluated after each validation; their metrics join the epoch's record."""
    average: Average | None = None
    """Moving average of the weights, validated after the model and saved beside it."""
    teacher: Teacher | None = None
    """A model whose predictions join the training loss."""
    cost: Measured | None = None
    """FLOPs of the training so far; None if the model's operations cannot be counted."""
    ranks: Ranks = ALONE
    """The processes that train together; the loaders give each its part of a batch."""

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sparsifier": self.sparsifier.state_dict(),
            "ema": self.average.state_dict() if self.average else None,
            "teacher": self.teacher.state_dict() if self.teacher else None,
            "precision": self.precision.state_dict(),
            "train_flops": self.cost.total if self.cost else None,
            "metadata": dict(self.metadata),
        }

    def own_state_dict(self) -> dict[str, Any]:
        """What differs between ranks: `processes` of the whole state has it from each."""
        return {"random": random_state(), "memory": memory.remembered(self.model)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        # states of older runs have none
        read = [each.get("memory", {}) for each in state["processes"]]
        memory.restore(self.model, read, self.ranks.rank, self.ranks.size, self.optim.accumulate)
        self.optimizer.load_state_dict(state["optimizer"])
        self.sparsifier.load_state_dict(state["sparsifier"])
        if self.average:
            self.average.load_state_dict(state["ema"])
        if self.teacher:
            # states of older runs have none
            self.teacher.load_state_dict(state.get("teacher"), self.sparsifier.phases, state["epoch"], state["step"])
        self.precision.load_state_dict(state["precision"])
        if self.cost:
            self.cost.total = state["train_flops"]
