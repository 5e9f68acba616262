"""Studies made by hand: run directories with the numbers that a test is about."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from acdc_cli.recipe.load import load, resolved_yaml
from acdc_cli.studies.grid import Cell
from acdc_cli.studies.results import Run, Value
from acdc_cli.studies.run_queue import RunQueue


@dataclass(frozen=True)
class Made:
    """A run; its numbers are those after the last epoch."""

    sparsity: str | float
    epochs: int
    seed: int
    top1: float | None = 0.9
    loss: float | None = 0.1
    entropy: float | None = 0.1
    flops: int | None = 1000
    done: bool = True
    ended: int | None = None
    """Epochs; by default all, or those of a run that waits: none."""
    overrides: Sequence[str] = ()
    axes: dict[str, Value] = field(default_factory=dict)
    largest_weight: float = 1.0
    """After the last epoch; before it 1."""

    @property
    def key(self) -> str:
        more = "".join(f",{axis}={value}" for axis, value in self.axes.items())
        return f"sparsity={self.sparsity},epochs={self.epochs}{more},seed={self.seed}"

    @property
    def cell(self) -> Cell:
        axes = {"sparsity": self.sparsity, "epochs": self.epochs, **self.axes, "seed": self.seed}
        return Cell(key=self.key, axes=axes, overrides=())

    def records(self) -> list[dict[str, Any]]:
        ended = self.ended if self.ended is not None else self.epochs if self.done else 0
        return [self._record(epoch) for epoch in range(ended)]

    def _record(self, epoch: int) -> dict[str, Any]:
        """Every epoch before the last has half the accuracy and twice the loss and the entropy."""
        before = epoch + 1 < self.epochs
        share = 0.0 if self.sparsity == "dense" else float(self.sparsity)
        return {
            "epoch": epoch,
            "seconds": 1.0,
            "phase": "dense" if self.sparsity == "dense" else "sparse",
            "top1": self.top1 and self.top1 * (0.5 if before else 1),
            "train_loss": self.loss and self.loss * (2 if before else 1),
            "train_cross_entropy": self.loss and self.loss * (2 if before else 1),
            "entropy": self.entropy and self.entropy * (2 if before else 1),
            "val_loss": 0.5,
            "mask_sparsity": share,
            "sparsity": share,
            "sparsity_all": share / 2,
            "largest_weight": 1.0 if before else self.largest_weight,
        }

    def write(self, path: Path) -> Path:
        if not self.done and self.ended is None:
            return path
        path.mkdir(parents=True)
        method = "demo_dense" if self.sparsity == "dense" else "demo_gmp"
        target = [] if self.sparsity == "dense" else [f"sparsity.target={self.sparsity}"]
        of_run = (f"epochs={self.epochs}", f"seed={self.seed}", *target, *self.overrides)
        (path / "resolved.yaml").write_text(_resolved(method, of_run))
        (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in self.records()))
        if self.done:
            cost = {"measured": {"train_flops": self.flops, "inference_flops": 10}}
            summary = {"name": method} | ({} if self.flops is None else {"cost": cost})
            (path / "summary.json").write_text(json.dumps(summary))
        return path


def study(folder: Path, runs: Sequence[Made]) -> Path:
    """A study directory of these runs."""
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        run.write(folder / "runs" / run.key)
    RunQueue(folder / "ledger.sqlite").add(run.cell for run in runs)
    return folder


def in_memory(made: Made) -> Run:
    """The same without files."""
    cost = {"cost": {"measured": {"train_flops": made.flops, "inference_flops": 10}}}
    method = "dense" if made.sparsity == "dense" else "gmp"
    return Run(
        key=made.key,
        axes=made.cell.axes,
        path=Path(made.key),
        state="done" if made.done else "waiting",
        recipe={"model": {}, "data": {}, "task": {"name": "multiclass"}, "sparsity": {"method": method}},
        records=made.records(),
        summary=cost if made.flops is not None else {},
    )


@cache
def _resolved(method: str, overrides: tuple[str, ...]) -> str:
    return resolved_yaml(load(method, overrides))
