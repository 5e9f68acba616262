"""The subject of an analysis: a run, one model of a run, or a file with weights."""

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
from acdc_cli.tasks.base.abstract_task import Task
from acdc_cli.training.evaluate import Forward
from acdc_cli.training.precision import Precision

Kind = Literal["sparse", "dense"]


class Loaded(Protocol):
    """A model on its device, in eval mode."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def forward(self) -> Forward:
        """Normalises uint8 images and applies the model; call it within `precision.autocast()`."""

    @property
    def layers(self) -> Sequence[Layer]:
        """The conv and linear layers, each with whether the recipe prunes it."""

    @property
    def task(self) -> Task: ...
    @property
    def precision(self) -> Precision: ...
    @property
    def device(self) -> torch.device: ...


class Subject(Protocol):
    @property
    def name(self) -> str:
        """Name in tables and legends; unique within an analysis."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def run(self) -> RunDir | None:
        """The run directory that was named; None if a file with weights was named."""

    @property
    def kind(self) -> Kind | None:
        """Which of a run's two models this is; None if none was requested, which means the sparse one if it exists."""

    @property
    def weights(self) -> Path:
        """The file with the model's weights. Raises CheckpointError if the run has none yet."""

    @property
    def data(self) -> DataSet:
        """The data it is evaluated on. Raises DataError if it is missing."""

    @property
    def digest(self) -> str:
        """Changes with the weights."""

    def of(self, kind: Kind) -> Subject:
        """The model of this kind from the same run. Raises RunError if the subject is no run, CheckpointError if it has
        no such model."""

    def load(self, weights: Path | None = None) -> Loaded:
        """The model. weights: another file to load instead, for example that of an earlier phase."""

    def images(
        self, split: Literal["train", "val"] = "val", count: int | None = None
    ) -> AbstractContextManager[Loader]:
        """The recipe's images as validation prepares them: each once, in the set's order, unaugmented.

        count: take only this many, evenly spaced. The batch size is the recipe's `val_batch_size`.
        Raises DataError if there are none.
        """


def run_of(subject: Subject) -> RunDir:
    """Raises RunError if the subject is a file."""
    if subject.run is None:
        raise RunError(f"{subject.name} is a file with weights, but this analysis reads a run; name a run directory")
    return subject.run


def whole_run_of(subject: Subject) -> RunDir:
    """Raises RunError if the subject is a file or one of a run's two models."""
    run = run_of(subject)
    if subject.kind is not None:
        raise RunError(f"{subject.name}: this analysis follows a whole run, not one of its models; leave out --which")
    return run


def records_of(subject: Subject) -> list[dict[str, Any]]:
    """The records of a run's epochs. Raises RunError if no epoch has ended."""
    records: list[dict[str, Any]] = run_of(subject).records()
    if not records:
        raise RunError(f"{subject.name}: no epoch has ended yet, so there is nothing to analyse")
    return records
