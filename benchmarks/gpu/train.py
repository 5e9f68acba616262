"""A short `acdc train resnet50_95` from beginning to end, as a person starts it."""

from __future__ import annotations

import shutil
import time

from acdc_cli.runs.run_dir import RunDir
from benchmarks.gpu import fed, processes
from benchmarks.gpu.trial import Trial

_EPOCHS = 4
_PHASES = "{warmup_epochs: 1, sparse_epochs: 1, dense_epochs: 1, last_dense_epochs: 1, last_sparse_epochs: 1}"
_ENDING = 8.0
"""Seconds that a run needs to save itself when it is interrupted."""
_KEPT = ("epoch", "phase", "images_per_second", "seconds", "train_loss", "top1", "sparsity")


def run(trial: Trial) -> None:
    data = fed.data(trial.smoke)
    settings = {
        "data.path": data.folder.resolve(),
        "data.resolution": 160,
        "epochs": _EPOCHS,
        "optim.schedule.warmup_epochs": 1,
        "sparsity": _PHASES,
        "track.wandb": "disabled",
        **(_SMOKE if trial.smoke else {}),
    }
    run_dir = RunDir(trial.folder / "train-run")
    shutil.rmtree(run_dir.path, ignore_errors=True)
    words = ["-m", "acdc_cli", "train", "resnet50_95", "--out", str(run_dir.path)]
    words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    began = time.monotonic()
    arrived: list[float] = []

    def watch() -> None:
        records = run_dir.records()
        while len(arrived) < len(records):
            arrived.append(time.monotonic() - began)
            trial.record(epochs=[{key: record.get(key) for key in _KEPT} for record in records])

    log = trial.folder / "train-acdc.log"
    code = processes.python(words, trial.left() - _ENDING, log, watch=watch)
    trial.record(
        command=" ".join(["acdc", *words[2:]]), exit_code=code, finished=code == 0, wall=time.monotonic() - began
    )
    if code:
        raise RuntimeError(f"acdc train ended with exit code {code}: {processes.last_line(log)}")
    records = run_dir.records()
    if not records:
        raise RuntimeError("the run was interrupted before the end of its first epoch")
    trial.record(seconds_until_the_first_epoch=round(arrived[0] - records[0]["seconds"], 2))
    if len(records) > 1:
        # the first epoch's own extra is compiling and choosing algorithms, nearly all of it in the first step
        extra = records[0]["seconds"] - records[1]["seconds"]
        first = arrived[0] - records[0]["seconds"] + extra
        trial.line("acdc train: start until the first step is done", first, "s")
        trial.line("acdc train: later epochs", max(r["images_per_second"] for r in records[1:]), "images/s")
    trial.line("acdc train: epochs done", len(records), f"of {_EPOCHS}")


_SMOKE = {
    "model.name": "resnet20",
    "data.resolution": 32,
    "data.val_resize": 32,
    "data.val_crop": 32,
    "data.batch_size": 20,
    "data.val_images": 20,
    "data.workers": 1,
    "data.loader": "torch",
    "threads": 1,
}
