"""A data set on the disk, opened once, whatever its inputs are: the targets, the fingerprint and the loaders.

A kind of inputs is one file of `data/inputs`, a module that is a `Kind`; the recipe's task picks it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

from acdc_cli.data.corrupted_labels import CorruptedLabels
from acdc_cli.data.labels import Labels
from acdc_cli.data.shard import UNDIVIDED, Shard
from acdc_cli.errors import DataError
from acdc_cli.recipe.blocks.data import DataBlock
from acdc_cli.recipe.discovery import INPUTS

if TYPE_CHECKING:
    # `acdc data` and `acdc doctor` do without torch
    import torch
    from torch import Tensor, nn

    from acdc_cli.data.batches import Loader


@dataclass(frozen=True)
class DataSet(ABC):
    """The data set of a recipe's `data` block, shared by loaders and provenance."""

    block: DataBlock
    only_tests: bool = False
    """Whether it is a relative of the set that a model was trained on, with some of its classes or all."""

    corrupted_labels: ClassVar[CorruptedLabels | None] = None
    """The training samples whose labels the recipe corrupts; None if there are none."""

    @property
    def path(self) -> Path:
        return root_of(self.block)

    @property
    @abstractmethod
    def labelled(self) -> Labels: ...

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.labelled.names

    @property
    def classes(self) -> int:
        """Number of classes or labels, which is that of a model's outputs."""
        return len(self.labelled.names)

    @property
    def further(self) -> tuple[str, ...]:
        """Further splits on which a model is validated; its metrics there are `METRIC/SPLIT`."""
        return ()

    @property
    @abstractmethod
    def fingerprint(self) -> Mapping[str, str]:
        """The fingerprint of each split that exists, which changes with its content."""

    @abstractmethod
    def stored(self, split: str) -> int:
        """Number of samples of a split; 0 if it does not exist."""

    def facts(self) -> dict[str, Any]:
        """The entry in a run's provenance."""
        return {
            "name": self.block.name,
            "path": str(self.path),
            "classes": self.classes,
            "class_names": self.class_names,
            "train": self.stored("train"),
            "val": self.stored("val"),
            "fingerprint": self.fingerprint,
        }

    @abstractmethod
    def train_loader(self, seed: int, sizes: Sequence[int], device: torch.device, shard: Shard = UNDIVIDED) -> Loader:
        """The training loader. Raises DataError if an epoch would have no step.

        sizes: of the samples, in each epoch of the run.
        """

    @abstractmethod
    def val_loader(
        self, device: torch.device, split: str = "val", shard: Shard = UNDIVIDED, count: int | None = None
    ) -> Loader:
        """The validation loader: every sample of the split once, in order, with its true target.

        count: use this many samples only, evenly spread. Raises DataError if there is no such split.
        """

    @abstractmethod
    def calibration_loader(self, seed: int, device: torch.device) -> Loader:
        """The training samples in whole shuffled batches, prepared as for validation, with their true targets."""


class Kind(Protocol):
    """A kind of inputs."""

    def open_set(self, block: DataBlock) -> DataSet:
        """Open the set. Raises DataError if there is none, or it is damaged."""

    def expected_set(self, block: DataBlock) -> tuple[int, int, bool]:
        """(classes, training samples that are used, whether the set exists): of the set on the disk, else of the known
        set of this name.

        Raises DataError for a missing set of unknown size.
        """

    def fingerprints(self, root: Path, thorough: bool) -> dict[str, str | None]:
        """The fingerprint of each split that lies in a folder, of the type that `DataSet.fingerprint` has; "" if it
        cannot be read.

        thorough: otherwise None stands for one that takes long to find out.
        """

    def vocabulary(self, block: DataBlock) -> int | None:
        """Different tokens that inputs may have; None if they have none, or as many as there are classes."""

    def blank(self, size: int, device: torch.device) -> Tensor:
        """One sample of this size without content, as loaders give inputs."""

    def output_shape(self, size: int, outputs: int) -> tuple[int, ...]:
        """The shape that a model's logits have for `blank`."""

    def preparation(self, block: DataBlock, device: torch.device, layout: torch.memory_format) -> Preparation:
        """layout: memory format of images."""

    def deployed(self, model: nn.Module) -> nn.Module:
        """The model as other software runs it: on one tensor, `engine_inputs`."""

    def engine_inputs(self, inputs: Tensor, block: DataBlock) -> Tensor:
        """What an exported model takes, from the inputs of a batch on the CPU."""

    engine_inputs_are: str
    """A description of them."""


class Preparation(Protocol):
    def __call__(self, inputs: Tensor, training: bool) -> tuple[Tensor | None, ...]:
        """The arguments of a model's forward pass, from the inputs of a batch; on the device."""


def kind_of(block: DataBlock) -> Kind:
    return cast("Kind", INPUTS.module(block.inputs))


def open_set(block: DataBlock) -> DataSet:
    """Open the set. Raises DataError if there is none, one of its files is damaged, or they do not fit together."""
    return kind_of(block).open_set(block)


def expected_set(block: DataBlock) -> tuple[int, int, bool]:
    """`Kind.expected_set` of the block's kind."""
    return kind_of(block).expected_set(block)


def root_of(block: DataBlock) -> Path:
    """The folder of the set, whether or not it exists."""
    return Path(block.path or f"data/{block.name}")


def steps_per_epoch(block: DataBlock, samples: int) -> int:
    """Whole batches in that many training samples. Raises DataError if there is none."""
    if samples < block.batch_size:
        raise DataError(
            f"data.batch_size {block.batch_size} is more than the {samples} {block.noun} of {block.name}, "
            "so an epoch would have no step. Lower it."
        )
    return samples // block.batch_size
