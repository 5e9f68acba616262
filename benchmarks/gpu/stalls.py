"""What interrupts training: updates of the masks, checkpoints, validation."""

from __future__ import annotations

from statistics import median

from acdc_cli.data.batches import Loader
from acdc_cli.recipe.load import load
from acdc_cli.training.evaluate import evaluate
from benchmarks.assemble import Assembly, Resident, assemble
from benchmarks.gpu.trial import Trial, forget
from benchmarks.measure import Target
from benchmarks.sparse_step import STEPS_PER_EPOCH, settled, updates_of


def run(trial: Trial) -> None:
    batch, side, val_batch, val_side, steps = (2, 32, 4, 32, 2) if trial.smoke else (64, 160, 1024, 224, 8)
    assembly = _assembled(trial, Resident(batch, side, STEPS_PER_EPOCH, trial.device), "compile=false")
    updates = [1000 * timing.wall for timing in updates_of(assembly, 2 if trial.smoke else 7)]
    trial.record(mask_update_ms=[round(update, 2) for update in updates])
    trial.line("global mask update", median(updates), "ms", Target("≤", 30.0))
    trainer = assembly.trainer
    waits: list[float] = []
    writes: list[float] = []
    # the first save allocates the memory that the others copy to
    for _ in range(3 if trial.smoke else 6):
        waits.append(1000 * settled(trainer._save).wall)
        writes.append(1000 * settled(trainer._saves.wait).wall)
        trial.record(
            checkpoint_ms=[round(wait, 1) for wait in waits], checkpoint_writes_ms=[round(w, 1) for w in writes]
        )
    trial.line("checkpoint, training waits", median(waits[1:]), "ms")
    together = median(wait + write for wait, write in zip(waits[1:], writes[1:], strict=True))
    trial.line("checkpoint, share that training waits", median(waits[1:]) / together, "", Target("≤", 0.1))
    state = trainer._run.checkpoints / "last.pt"
    trial.record(checkpoint_bytes=state.stat().st_size)
    del assembly, trainer
    forget()
    resident = Resident(val_batch, val_side, steps, trial.device)
    assembly = _assembled(trial, resident)
    speeds: list[float] = []
    trial.record(validation_first_seconds=round(_validation(assembly, resident), 2))
    for _ in trial.rounds():
        speeds.append(resident.samples / _validation(assembly, resident))
        trial.record(validation_images_per_second=[round(speed, 1) for speed in speeds])
        trial.line(f"validation, {val_side} px", median(speeds), "images/s")
        if len(speeds) == 20:
            break


def _assembled(trial: Trial, loader: Loader, *more: str) -> Assembly:
    model = ("model.name=resnet20",) if trial.smoke else ()
    recipe = load("resnet50_95", [f"device={trial.device.type}", "optim.lr=0.001", *model, *more])
    folder = trial.folder / "stalls-run"
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    return assemble(recipe, loader, folder=folder)


def _validation(assembly: Assembly, loader: Loader) -> float:
    """Seconds."""
    parts = assembly.parts
    return settled(lambda: evaluate(parts.model, parts.forward, loader, parts.task, parts.precision)).wall
