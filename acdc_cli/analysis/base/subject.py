"""What is analysed: a run, or one model of it or of somebody else."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from acdc_cli.data.batches import Loader
from acdc_cli.data.data_set import DataSet
from acdc_cli.errors import RunError
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.sparsity.prunable import Layer
from acdc_cli.tasks.task import Task
from acdc_cli.training.evaluate import Forward
from acdc_cli.training.precision import Precision

Kind = Literal["sparse", "dense"]


class Loaded(Protocol):
    """A model on its device, in eval mode."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def forward(self) -> Forward:
        """Normalises uint8 images and shows them to the model; call it within `precision.autocast()`."""

    @property
    def layers(self) -> Sequence[Layer]:
        """The convolutions and linear layers, and which of them the recipe prunes."""

    @property
    def task(self) -> Task: ...
    @property
    def precision(self) -> Precision: ...
    @property
    def device(self) -> torch.device: ...


class Subject(Protocol):
    @property
    def name(self) -> str:
        """In tables and legends; no two subjects of an analysis have the same."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def run(self) -> RunDir | None:
        """The run directory that was named; None where it was a file with weights."""

    @property
    def kind(self) -> Kind | None:
        """Which of a run's two models this is; None: nobody asked for one, so the sparse one if there is one."""

    @property
    def weights(self) -> Path:
        """The file with the model's weights. Raises CheckpointError where the run has none yet."""

    @property
    def data(self) -> DataSet:
        """What it is judged on. Raises DataError where it is missing."""

    @property
    def digest(self) -> str:
        """Differs where the weights do."""

    def of(self, kind: Kind) -> Subject:
        """That model of the same run. Raises RunError where it is no run, and CheckpointError where there is none."""

    def load(self, weights: Path | None = None) -> Loaded:
        """The model; weights: another file's instead of its own, for example that of an earlier phase."""

    def images(
        self, split: Literal["train", "val"] = "val", count: int | None = None
    ) -> AbstractContextManager[Loader]:
        """The images that the recipe uses, as validation sees them: each once, in the set's order, unaugmented, in the
        recipe's `val_batch_size`.

        count: take so many of them only, evenly spread. Raises DataError where there are none.
        """


def run_of(subject: Subject) -> RunDir:
    """Raises RunError where the subject is a file."""
    if subject.run is None:
        raise RunError(f"{subject.name} is a file with weights, but this analysis reads a run directory; name one")
    return subject.run


def whole_run_of(subject: Subject) -> RunDir:
    """Raises RunError where the subject is a file, or one of a run's two models."""
    run = run_of(subject)
    if subject.kind is not None:
        raise RunError(f"{subject.name}: this analysis follows a whole run, not one of its models; leave --which out")
    return run


def records_of(subject: Subject) -> list[dict[str, Any]]:
    """A run's epochs. Raises RunError where none has ended."""
    records: list[dict[str, Any]] = run_of(subject).records()
    if not records:
        raise RunError(f"{subject.name}: no epoch has ended yet, so there is nothing to analyse")
    return records
