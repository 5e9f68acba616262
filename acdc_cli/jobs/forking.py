"""A run that starts from the state which another run kept (`fork: RUN@EPOCHS`); from there it resumes like any other.

A fork equals the run of its own recipe to the bit, if its recipe differs from the source's only in what comes after.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acdc_cli import files
from acdc_cli.errors import RunError
from acdc_cli.recipe.bearing import FORKS_OWN, MAY_CHANGE_ON_RESUME, bearing, differences
from acdc_cli.recipe.load import load
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.run_dir import RunDir, open_run
from acdc_cli.schedule.time import PhasePlan
from acdc_cli.training import checkpoint, saved_state
from acdc_cli.training.parts import Parts

_SHAPE = ("model", "optim.name", "optim.decay_norm_and_bias", "sparsity.method", "sparsity.keep_dense", "ema")
"""Keys, or blocks, that decide what a state consists of."""


@dataclass(frozen=True)
class Fork:
    source: RunDir
    epochs: int
    """Epochs that the source had trained."""

    def provenance(self, recipe: Recipe) -> dict[str, Any]:
        """The fork's entry: the source and its own provenance, the FLOPs spent before the fork (None if not counted),
        and the keys that differ, with both values."""
        changed = self._changed(recipe)
        return {
            "run": str(self.source.path.resolve()),
            "epochs": self.epochs,
            "train_flops": self._records()[-1].get("train_flops"),
            "changed": {key: list(values) for key, values in changed.items() if key not in FORKS_OWN},
            "source": self.source.provenance(),
        }

    def require_fit(self, recipe: Recipe, phases: PhasePlan, fingerprint: Mapping[str, str]) -> None:
        """Raises RunError if a run of this recipe, on these images, cannot start from the state."""
        path, kept = self.source.path, self.source.kept_states()
        if self.epochs not in kept:
            others = f"it kept {', '.join(f'{path}@{each}' for each in kept)}" if kept else "it kept none"
            raise RunError(
                f"{path} kept no state after {self.epochs} epochs; {others}. Train it with "
                f"checkpoint.keep_states=[{self.epochs}]"
            )
        if self.epochs >= recipe.epochs:
            raise RunError(
                f"{path}@{self.epochs}: nothing is left to train of {recipe.epochs} epochs; set epochs higher"
            )
        for key, (before, now) in self._changed(recipe).items():
            # momentum may change, but has no state where it is 0
            if key.startswith(_SHAPE) or (key == "optim.momentum" and bool(before) != bool(now)):
                raise RunError(
                    f"{key}: {before} in {path}, {now} here; a fork has the model, the optimiser and "
                    "the method of its source. To start from its weights alone, set model.weights"
                )
        if self.source.last_start()["data"]["fingerprint"] != fingerprint:
            raise RunError(f"the images are not those that {path} was trained on; set data.path to those")
        for record in self._records():
            if record["phase"] != (kind := phases.at(record["epoch"]).kind):
                raise RunError(
                    f"epoch {record['epoch']} of {path} was {record['phase']}, but this recipe makes it {kind}; "
                    f"change only what comes after {self.epochs} epochs"
                )

    def prepare(self, run: RunDir, parts: Parts) -> None:
        """Makes `run` a run that can be resumed after `epochs` epochs. May be repeated if it was interrupted.

        Raises CheckpointError if the state is damaged.
        """
        folder = self.source.kept_state(self.epochs)
        state = checkpoint.load_state(folder)
        assert state is not None
        saved_state.require_form(state, folder)
        saved_state.require_fit(state, parts, folder)
        for model in RunDir(folder).models():
            files.copy(model, run.path / model.name)
        for kept in self.source.kept_masks():
            if kept.epoch < self.epochs:
                files.copy(kept.file, run.masks / kept.file.name)
        files.write_text(run.metrics, "".join(json.dumps(record) + "\n" for record in self._records()))
        _take_settings(state["optimizer"]["param_groups"], parts.optimizer.state_dict()["param_groups"])
        # last, because a run with a checkpoint is resumed and no longer prepared
        checkpoint.save_state(run.checkpoints, {**state, "metadata": dict(parts.metadata)})

    def _records(self) -> list[dict[str, Any]]:
        return [record for record in self.source.records() if record["epoch"] < self.epochs]

    def _changed(self, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
        """Where the recipe differs from the source's, in keys that affect the numbers."""
        recipes = (bearing(each.as_dict(), MAY_CHANGE_ON_RESUME) for each in (load(self.source.resolved), recipe))
        return differences(*recipes)


def _take_settings(saved: list[dict[str, Any]], own: list[dict[str, Any]]) -> None:
    """The fork's weight decay, momentum and so on replace the source's, which an optimiser would load; the learning
    rate is set at each step."""
    for before, now in zip(saved, own, strict=True):
        assert before["params"] == now["params"]
        before.update({key: value for key, value in now.items() if key != "lr"})


def fork_of(recipe: Recipe, run: RunDir) -> Fork | None:
    """The fork that the recipe asks for. Raises RunError if its source is not a run."""
    if recipe.fork is None:
        return None
    source, epochs = split(recipe.fork)
    # an absolute path stays as it is
    return Fork(open_run(run.path.parent / source), epochs)


def split(fork: str) -> tuple[str, int]:
    """The run and the epochs of RUN@EPOCHS. Raises RunError."""
    source, at, epochs = fork.rpartition("@")
    if not (at and source and epochs.isdecimal()):
        raise RunError(f"{fork}: expected RUN@EPOCHS, such as runs/resnet50_95-0@85")
    return source, int(epochs)


def forked(fork: str, source: str | None, overrides: Sequence[str], out: Path | None) -> tuple[str, list[str], Path]:
    """The recipe, its overrides and the run directory of `acdc train --fork RUN@EPOCHS`.

    source: a recipe; None: the source run's. The fork's default name is the source's with `-after-EPOCHS`.
    """
    path, epochs = split(fork)
    parent = open_run(Path(path))
    source = source or str(parent.resolved)
    named = any(override.startswith("name=") for override in overrides)
    recipe = load(source, overrides)
    name = recipe.name if named else f"{recipe.name}-after-{epochs}"
    out = out or Path("runs") / f"{name}-{recipe.seed}"
    # relative, so that both can be moved together
    relative = os.path.relpath(parent.path, out.parent)
    return source, [*overrides, f"name={name}", f"fork={json.dumps(f'{relative}@{epochs}')}"], out
