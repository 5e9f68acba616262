"""The training check: a small network, AC/DC, synthetic images, from the first step to reading back a checkpoint."""

from __future__ import annotations

import io
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from acdc_cli.data.batches import Batch
from acdc_cli.doctor.verdict import Verdict, error, ok
from acdc_cli.jobs import setup
from acdc_cli.jobs.training_run import assemble
from acdc_cli.recipe.load import load
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.runs.tracker import Tracker
from acdc_cli.training import checkpoint
from acdc_cli.training.parts import Parts
from acdc_cli.training.trainer import Trainer

_CLASSES, _SIDE, _BATCH, _STEPS = 10, 14, 64, 4
_RECIPE = (
    "epochs=6",
    "compile=false",
    "optim.lr=0.05",
    "optim.schedule.warmup_epochs=0",
    "sparsity={warmup_epochs: 1, sparse_epochs: 1, dense_epochs: 1, last_dense_epochs: 1, last_sparse_epochs: 1}",
    f"data={{batch_size: {_BATCH}, resolution: {_SIDE}, val_resize: {_SIDE}, val_crop: {_SIDE}}}",
    "track.wandb=disabled",
)
"""Changes to the recipe `demo`."""


@dataclass(frozen=True)
class TrialRun:
    device: str
    precision: str
    losses: tuple[float, ...]
    """Training losses, epoch by epoch."""
    sparsity: float
    """Fraction of the pruned weights that is masked at the end."""
    target: float
    """The sparsity it should be."""
    masked_nonzero: int
    """Masked weights that are not exactly zero."""
    read_back: bool
    """Whether the checkpoint restored every weight and mask, bit for bit."""
    seconds: float = 0.0


def training() -> Verdict:
    # the table of epochs belongs to real runs
    with tempfile.TemporaryDirectory(prefix="acdc-doctor-") as scratch, redirect_stderr(io.StringIO()):
        return judge(_train(RunDir(Path(scratch))))


def judge(facts: TrialRun) -> Verdict:
    where = f"on {facts.device}, {facts.precision}"
    fix = "try --set device=cpu, then --set precision=fp32: the one that helps shows the cause"
    first, last = facts.losses[0], facts.losses[-1]
    # written so that a NaN loss counts as one that does not fall
    if not last < first:
        return error(f"{where}: the loss does not fall, {first:.3f} in the first epoch, {last:.3f} in the last", fix)
    if facts.masked_nonzero:
        return error(f"{where}: {facts.masked_nonzero} masked weights are not zero", fix)
    if abs(facts.sparsity - facts.target) > 1e-3:
        return error(f"{where}: the sparsity is {facts.sparsity:.2%} instead of {facts.target:.2%}", fix)
    if not facts.read_back:
        return error(
            f"{where}: the checkpoint read back differs from the one written", "check the disk of the folder TMPDIR"
        )
    result = f"{len(facts.losses)} epochs of AC/DC {where}, in {facts.seconds:.1f} s: loss {first:.2f} to {last:.2f}"
    return ok(f"{result}, {facts.sparsity:.0%} of the weights exactly zero, checkpoint read back")


def _train(run: RunDir) -> TrialRun:
    began = time.perf_counter()
    recipe = load("demo", _RECIPE)
    for folder in (run.checkpoints, run.masks):
        folder.mkdir()
    ready = setup.build(recipe, _CLASSES)
    images, records = _Patterns(ready.device), _Records()
    parts = assemble(recipe, ready, images, images)
    Trainer(parts, run, [records]).fit()
    masked = parts.sparsifier.masked
    return TrialRun(
        device=ready.device.type,
        precision=ready.precision.name,
        losses=tuple(records.losses),
        sparsity=masked.sparsity(),
        target=recipe.as_dict()["sparsity"]["target"],
        masked_nonzero=sum(
            int(weight[~masked.masks[name]].count_nonzero()) for name, weight in masked.parameters.items()
        ),
        read_back=_reads_back(recipe, run, parts),
        seconds=time.perf_counter() - began,
    )


def _reads_back(recipe: Recipe, run: RunDir, parts: Parts) -> bool:
    """Whether a trainer with other weights matches this one after loading the checkpoint."""
    ready = setup.build(recipe.model_copy(update={"seed": recipe.seed + 1}), _CLASSES)
    again = assemble(recipe, ready, parts.train, parts.val)
    state = checkpoint.load_state(run.checkpoints)
    assert state is not None
    Trainer(again, run).load_state_dict(state)
    pairs = ((parts.model.state_dict(), again.model.state_dict()), (_masks(parts), _masks(again)))
    return all(torch.equal(tensor, loaded[name]) for trained, loaded in pairs for name, tensor in trained.items())


def _masks(parts: Parts) -> dict[str, Tensor]:
    return parts.sparsifier.masked.masks


class _Patterns:
    """A `batches.Loader` of ten noisy patterns on the device, one per class."""

    kind: Literal["ffcv", "torch"] = "torch"
    steps, samples = _STEPS, _STEPS * _BATCH

    def __init__(self, device: torch.device) -> None:
        random = torch.Generator().manual_seed(0)
        patterns = torch.randint(0, 200, (_CLASSES, _SIDE, _SIDE, 3), generator=random)
        labels = torch.arange(self.samples) % _CLASSES
        noise = torch.randint(0, 56, (self.samples, _SIDE, _SIDE, 3), generator=random)
        self._images = (patterns[labels] + noise).to(torch.uint8).to(device).permute(0, 3, 1, 2)
        self._labels = labels.to(device)

    @contextmanager
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Iterator[Batch]]:
        parts = [torch.arange(step * _BATCH, (step + 1) * _BATCH) for step in range(start_step, _STEPS)]
        yield (Batch(self._images[part], self._labels[part], part) for part in parts)

    def prepare(self, epoch: int) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Records(Tracker):
    """Keeps the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def log(self, record: dict[str, Any]) -> None:
        loss = record["train_loss"]
        self.losses.append(math.nan if loss is None else loss)
