"""The result files of a run: the dense and the sparse model, and the models and masks saved along the way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acdc_cli import files
from acdc_cli.runs.run_dir import Kept, RunDir
from acdc_cli.training import checkpoint
from acdc_cli.training.parts import Parts
from acdc_cli.training.progress import print_phase_end


class Products:
    def __init__(self, parts: Parts, run: RunDir) -> None:
        self._parts = parts
        self._run = run
        self.phase_ends: dict[str, dict[str, Any]] = {}
        """The record at the end of the latest phase of each kind, by kind."""

    def save(self, record: dict[str, Any]) -> None:
        """Saves the masks and models that are due after an epoch, with its record; only the first process writes."""
        parts, kind = self._parts, record["phase"]
        if not parts.ranks.first:
            return
        name = Kept.name(record["epoch"], kind)
        metadata = {**parts.metadata, "metrics": record}
        phase_ends = parts.sparsifier.phases.ends(record["epoch"])
        is_kept = _is_due(parts.checkpoint.keep_every, record["epoch"])
        if kind != "dense" and (phase_ends or is_kept or _is_due(parts.checkpoint.keep_masks_every, record["epoch"])):
            checkpoint.save_masks(self._run.masks / name, parts.sparsifier.support())
        if is_kept or (phase_ends and parts.checkpoint.keep_phases):
            checkpoint.save_model(self._run.checkpoints / name, parts.model, metadata)
        if phase_ends:
            if kind in ("sparse", "dense"):
                self._save_final(kind, metadata)
            self.phase_ends[kind] = record
            print_phase_end(record)

    def copy_models(self, folder: Path) -> None:
        """Copies the models made so far: those of the same names may follow."""
        with files.explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for model in self._run.models():
                files.copy(model, folder / model.name)

    def _save_final(self, kind: str, metadata: Mapping[str, Any]) -> None:
        """Saves the run's result of this kind, unless another phase of the kind follows, and its average."""
        parts, record = self._parts, metadata["metrics"]
        checkpoint.save_model(self._run.model_file(kind), parts.model, metadata)
        if parts.average and parts.average.begun:
            averaged = {key.removeprefix("ema_"): value for key, value in record.items() if key.startswith("ema_")}
            with parts.average.installed():
                header = {**metadata, "metrics": record | averaged}
                checkpoint.save_model(self._run.model_file(f"{kind}-ema"), parts.model, header)


def _is_due(every: int | None, epoch: int) -> bool:
    return every is not None and (epoch + 1) % every == 0
