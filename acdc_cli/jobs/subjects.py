"""Runs and checkpoints as subjects of analyses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from acdc_cli import console, files
from acdc_cli.analysis.base.subject import Kind, Loaded
from acdc_cli.data.batches import Loader
from acdc_cli.data.data_set import DataSet
from acdc_cli.errors import RunError
from acdc_cli.jobs import setup
from acdc_cli.jobs.checkpoints import judged, located, names_its_model, recipe_of, weights_of
from acdc_cli.jobs.data_search import open_found
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.run_dir import RunDir, open_run
from acdc_cli.training.precision import choose_device


@dataclass(frozen=True)
class Asked:
    """Command-line options for every subject; None keeps the recipe's value."""

    which: Kind | None = None
    model: str | None = None
    """The architecture of foreign files."""
    data: str | None = None
    """Name or folder of a data set."""
    overrides: tuple[str, ...] = ()
    """Further keys of the recipe, as `key=value`."""
    foreign_data: str | None = None
    """As `data`, of foreign files alone."""


@dataclass(frozen=True)
class Checkpoint:
    """A `Subject`: a run directory, or a file with weights."""

    source: Path
    asked: Asked
    name: str
    recipe: Recipe

    @property
    def run(self) -> RunDir | None:
        return open_run(self.source) if self.source.is_dir() else None

    @property
    def kind(self) -> Kind | None:
        return self.asked.which

    @property
    def weights(self) -> Path:
        return weights_of(self.source, self.asked.which)

    @cached_property
    def digest(self) -> str:
        return files.sha256(self.weights)

    @cached_property
    def data(self) -> DataSet:
        return open_found(self.recipe.data, self.source)

    def of(self, kind: Kind) -> Checkpoint:
        if self.run is None:
            raise RunError(f"{self.source} is one file with weights; name a run directory, which holds both models")
        weights_of(self.source, kind)
        name = self.name.removesuffix(f" ({self.kind})")
        return replace(self, asked=replace(self.asked, which=kind), name=f"{name} ({kind})")

    def load(self, weights: Path | None = None) -> Loaded:
        recipe = judged(self.recipe, weights or self.weights, self.asked.data)
        ready = setup.build(recipe, self.data.labelled)
        setup.require_sizes(ready, [recipe.data.val_size])
        return ready

    @contextmanager
    def images(self, split: Literal["train", "val"] = "val", count: int | None = None) -> Iterator[Loader]:
        loader = self.data.val_loader(choose_device(self.recipe.device), split, count=count)
        try:
            loader.warm_up()
            yield loader
        finally:
            loader.close()


def open_subjects(sources: Sequence[Path], asked: Asked | None = None) -> list[Checkpoint]:
    """asked.which applies to runs; asked.model applies to files that do not record their model.

    Raises CheckpointError, RunError or RecipeError for a source that is neither.
    """
    asked, sources = asked or Asked(), [located(source) for source in sources]
    runs = [source.is_dir() for source in sources]
    ours = [names_its_model(source) for source in sources]
    names = _names(sources)
    subjects = []
    for source, name, is_run, is_ours in zip(sources, names, runs, ours, strict=True):
        # an option that fits no source goes to all of them and is refused
        which = asked.which if is_run or not any(runs) else None
        model = asked.model if not is_ours or all(ours) else None
        changes = [each for each in asked.overrides if not (is_ours and each.startswith("model.rename="))]
        data = asked.data or asked.foreign_data
        recipe = recipe_of(source, which, model, data, asked.overrides if all(ours) else changes)
        recipe = recipe.model_copy(update={"data": judged(recipe, source, asked.data).data})
        one = replace(asked, which=which, model=model)
        subjects.append(Checkpoint(source, one, f"{name} ({which})" if which else name, recipe))
    return subjects


def _names(sources: Sequence[Path]) -> list[str]:
    """The shortest unique names: the last parts of each path, without a model file's extension."""
    paths = [(source if source.is_dir() else source.with_suffix("")).absolute() for source in sources]
    # figures cannot draw a name that is no UTF-8
    parts = [[console.inert(part) for part in path.parts] for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names) and all(_tells(source, length) for source in sources):
            return names
    twice = next(source for source in sources if list(sources).count(source) > 1)
    raise RunError(f"{twice} is named twice; an analysis compares different models")


def _tells(source: Path, length: int) -> bool:
    """`sparse.safetensors` alone is ambiguous: it needs its folder, and a phase's checkpoint also needs its run's."""
    if source.is_dir():
        return True
    return length >= (3 if source.parent.name == "checkpoints" else 2)
