"""What a model is trained for: the loss of a batch, metrics over batches, and the decisions it makes.

A task is one file of the parent package with a class `Task`; nothing else lists it. Targets are what a data set stores
for each sample, one int64: a class's number, or bits (`data/labels.py`); the task reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor

from acdc_cli.quantities import Measures
from acdc_cli.recipe.blocks.base import Misfit
from acdc_cli.recipe.blocks.data import DataBlock
from acdc_cli.recipe.blocks.task import TaskBlock


class Measure(Protocol):
    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics."""

    def sums(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """What `metrics` needs of a batch, float64 on the device: scalars are added over batches and ranks, vectors are
        concatenated, in any order of the batches."""

    def metrics(self, sums: Mapping[str, Any], samples: int) -> dict[str, float]:
        """Exact metrics of `samples` samples from their sums, which are floats, and from lists of floats."""


class Task(Measure, Protocol):
    measures: ClassVar[Measures]
    """The metrics that tables and figures show; `names` may have more."""
    inputs: ClassVar[str]
    """The kind of inputs: a file of `data/inputs`."""
    targets: ClassVar[str]
    """The kind of targets that it takes: one of `data.labels.KINDS`."""
    losses: ClassVar[tuple[str, ...]]
    """The values of `task.loss` that it takes, its default first."""

    def __init__(self, block: TaskBlock, names: Sequence[str] = ()) -> None:
        """names: of the outputs, which are classes or labels."""

    @staticmethod
    def check(data: DataBlock) -> Iterator[Misfit]:
        """Everything in a recipe's data block that this task cannot do."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The training loss of a batch, a scalar. Mixed targets are (batch, outputs), float32."""

    def unsmoothed_loss(self, logits: Tensor, targets: Tensor) -> Tensor | None:
        """The loss on the targets themselves, without a gradient; None if `loss` is on them, too."""

    # A decision is a choice among options. Each sample asks for one or more, and all have the same number of options.
    # In what follows, each token of a text is a sample: (batch, …) is (rows · length, …) there.

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """(batch, decisions, options): of each option, in the logits' precision."""

    def undecided(self, logits: Tensor) -> Tensor:
        """(batch, decisions): what `measures.confidence` is the mean of."""

    def answers(self, logits: Tensor) -> Tensor:
        """(batch, decisions), int64: the options that the model chooses, ties as in `sums`."""

    def truth(self, targets: Tensor, outputs: int) -> Tensor:
        """(batch, decisions), int64: the right options.  outputs: of the model."""

    def asked(self, targets: Tensor) -> Tensor | None:
        """(batch,), bool: which samples count; None: all."""

    def decisions(self, outputs: int) -> tuple[str, ...]:
        """Names of the decisions; one without a name if there is one only."""

    def options(self, outputs: int) -> tuple[str, ...]:
        """Names of the options."""
