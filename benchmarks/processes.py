"""The parts of a run of several processes, on CPUs: steps, exchange, checkpoint, validation, start, a lost process.

docs/scale.md predicts runs from these parts; `python -m scripts.scale` reads this benchmark's result.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing
from torch.distributed import TCPStore

from acdc_cli.errors import AcdcError
from acdc_cli.recipe.load import load
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.training import checkpoint
from acdc_cli.training.distributed import Ranks, process_group
from acdc_cli.training.evaluate import evaluate
from benchmarks import photos
from benchmarks.assemble import Assembly, Resident, assemble, moment
from benchmarks.measure import alternate, compare, timed
from benchmarks.trainer import Case

_PAIR = ("2 processes", "1 process")
_RANKS = 2
_FIRST_BUCKET, _BUCKET = 2**20, 25 * 2**20
"""Bytes that DistributedDataParallel sends at once: a small part first, so that the exchange begins early."""

_CASES = (
    Case("cifar/resnet20_dense", batch_size=128, side=32, classes=10, steps=8, rounds=9),
    Case("resnet50_dense", batch_size=16, side=64, classes=1000, steps=4, rounds=9),
)
_SMOKE = (Case("cifar/resnet20_dense", batch_size=4, side=32, classes=10, steps=2, rounds=2),)


def run(smoke: bool) -> dict[str, Any]:
    cases = {case: _together(_RANKS, _measure_steps, case) for case in (_SMOKE if smoke else _CASES)}
    sizes, meetings = ((2,), 5) if smoke else ((2, 4, 8), 300)
    return {
        "comparisons": [_speed(case, by_rank[0]) for case, by_rank in cases.items()],
        "steps": {str(case): _steps(case, by_rank) for case, by_rank in cases.items()},
        "agreement_us": {str(size): _together(size, _measure_agreement, meetings)[0] for size in sizes},
        "checkpoint": _measure_checkpoint(1 if smoke else 7),
        "validation": _measure_validation(1 if smoke else 7),
        "lost_process": _measure_loss(photos.prepare(40).folder, smoke),
        "notes": [
            "One thread a process. `apart`: both train at once and exchange nothing, so that they share caches and "
            "memory as the two of one run do."
        ],
    }


Work = Callable[[Ranks, Any], dict[str, Any] | float]


def _together(size: int, work: Work, argument: Any) -> list[Any]:
    """What the work returned in each of the processes, which find each other as those of a launcher do."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_join, (size, store.port, work, argument, folder), nprocs=size)
        return [json.loads(Path(folder, str(rank)).read_text()) for rank in range(size)]


def _join(rank: int, size: int, port: int, work: Work, argument: Any, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    with process_group() as ranks:
        Path(folder, str(rank)).write_text(json.dumps(work(ranks, argument)))


def _measure_steps(ranks: Ranks, case: Case) -> dict[str, Any]:
    """Seconds of single steps, by what is done: rounds × steps of this process, and of the exchanges of a step."""
    recipe = case.load("cpu").model_copy(update={"threads": 1})
    device = torch.device("cpu")

    def assembled(images: int, together: bool) -> Assembly:
        loader = Resident(images, case.side, case.steps, device, case.classes)
        return assemble(recipe, loader, case.classes, *([ranks] if together else []))

    part = case.batch_size // ranks.size
    whole, apart, one = assembled(part, True), assembled(part, False), assembled(case.batch_size, False)
    gradients = [torch.zeros(size) for size in _buckets(whole)]
    step_seconds: dict[str, list[float]] = {"one": [], "apart": [], "together": [], "exchange": []}
    for counted in [False, *[True] * case.rounds]:
        times = {
            "one": _step_times(one, case.steps) if ranks.first else [],
            "apart": _met(ranks, lambda: _step_times(apart, case.steps)),
            "together": _met(ranks, lambda: _step_times(whole, case.steps)),
            "exchange": _met(ranks, lambda: [_exchange(ranks, whole, gradients) for _ in range(case.steps)]),
        }
        ranks.wait()
        for what, seconds in times.items():
            step_seconds[what] += seconds if counted else []
    return {**step_seconds, "bytes": sum(4 * len(each) for each in gradients), "buckets": len(gradients)}


def _met(ranks: Ranks, measure: Callable[[], list[float]]) -> list[float]:
    ranks.wait()
    return measure()


def _step_times(assembly: Assembly, count: int) -> list[float]:
    """Seconds of each step, as the trainer takes them; with other processes, their agreement on going on included."""
    times, trainer = [], assembly.trainer
    with assembly.parts.train.epoch(0) as batches:
        batch = next(batches)
        for index in range(1, count + 1):
            began = time.perf_counter()
            trainer._take_step(batch, moment(assembly, 0, index), assembly.recipe.optim.lr)
            trainer._carry_out_requests()
            times.append(time.perf_counter() - began)
    return times


def _buckets(assembly: Assembly) -> list[int]:
    """Gradients in each message of a step."""
    left = sum(parameter.numel() for parameter in assembly.parts.model.parameters() if parameter.requires_grad)
    sizes = []
    while left:
        sizes.append(min(left, (_BUCKET if sizes else _FIRST_BUCKET) // 4))
        left -= sizes[-1]
    return sizes


def _exchange(ranks: Ranks, assembly: Assembly, gradients: Sequence[Tensor]) -> float:
    """Seconds of all that a step sends: gradients, batch norm's statistics, the agreement on going on."""
    began = time.perf_counter()
    ranks.broadcast_(assembly.parts.model.buffers())
    for bucket in gradients:
        distributed.all_reduce(bucket)
    assembly.trainer._carry_out_requests()
    return time.perf_counter() - began


def _speed(case: Case, measured: dict[str, Any]) -> dict[str, Any]:
    def speeds(seconds: Sequence[float]) -> list[float]:
        by_round = [seconds[start : start + case.steps] for start in range(0, len(seconds), case.steps)]
        return [case.images / sum(each) for each in by_round]

    rounds = {_PAIR[0]: speeds(measured["together"]), _PAIR[1]: speeds(measured["one"])}
    return compare(f"{case}, images of all processes", "images/s", rounds, *_PAIR)


def _steps(case: Case, by_rank: Sequence[dict[str, Any]]) -> dict[str, Any]:
    milliseconds = {
        what: [[round(1000 * second, 3) for second in each[what]] for each in by_rank if each[what]]
        for what in ("one", "apart", "together", "exchange")
    }
    return {
        "batch": case.batch_size,
        "steps_per_round": case.steps,
        "bytes": by_rank[0]["bytes"],
        "buckets": by_rank[0]["buckets"],
        "ms": milliseconds,
    }


def _measure_agreement(ranks: Ranks, count: int) -> float:
    """Microseconds of one number's maximum over all processes, which the trainer asks for after every step."""
    ranks.wait()
    seconds = [_seconds_of(ranks.wait) for _ in range(count)]
    return round(1e6 * median(seconds), 1)


def _seconds_of(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _measure_checkpoint(rounds: int) -> dict[str, Any]:
    """Seconds of the parts of a checkpoint of ResNet-50 with AC/DC's masks and momentum, on this disk."""
    recipe = load("resnet50_95", ["device=cpu", "data.batch_size=2"])
    loader = Resident(2, 64, 1, torch.device("cpu"))
    assembly = assemble(recipe, loader)
    assembly.steps(0, 1)
    # on the disk that runs lie on, not on one in memory
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder)
        state = assembly.trainer.state_dict()
        contestants = {
            "state": lambda: timed(assembly.trainer.state_dict),
            "write": lambda: timed(lambda: checkpoint.save_state(path, state)),
            "load": lambda: timed(lambda: checkpoint.load_state(path)),
        }
        rounds_taken = alternate(contestants, rounds)
        size = (path / "last.pt").stat().st_size
    seconds = {what: [round(timing.wall, 4) for timing in timings] for what, timings in rounds_taken.items()}
    return {"recipe": "resnet50_95", "bytes": size, "seconds": seconds}


def _measure_validation(rounds: int) -> dict[str, Any]:
    """Seconds of an image in validation and in training, ResNet-50 at one size, one thread."""
    torch.set_num_threads(1)
    recipe = load("resnet50_dense", ["device=cpu", "optim.lr=0.001", "threads=1"])
    assembly = assemble(recipe, Resident(16, 64, 4, torch.device("cpu")))
    parts = assembly.parts

    def judge() -> None:
        evaluate(parts.model, parts.forward, parts.val, parts.task, parts.precision)

    contestants = {"validation": lambda: timed(judge), "training": lambda: timed(lambda: assembly.steps(0, 4))}
    alternate(contestants, 1)
    rounds_taken = alternate(contestants, rounds)
    each = {what: [round(timing.wall / 64, 6) for timing in timings] for what, timings in rounds_taken.items()}
    ratio = compare("", "", each, "validation", "training")["ratio"]
    return {"seconds_per_image": each, "validation_to_training": ratio}


@dataclass(frozen=True)
class _Run:
    """`acdc train --gpus 2`, timed from outside."""

    seconds: float
    """From its start to its end."""
    epochs: list[float]
    """Seconds of each epoch, validation included."""
    killed_after: float | None
    """Seconds from the start of the epoch in which a process was killed."""


def _measure_loss(data: Path, smoke: bool) -> dict[str, Any]:
    """Runs of two processes, alternately left alone and with the second process killed in the middle of an epoch."""
    settings = {
        "model.name": "resnet8",
        "data.path": data,
        "data.batch_size": 20,
        "data.augment": "random_resized_crop",
        "data.resolution": 32,
        "data.workers": 1,
        "optim.lr": 0.001,
        "epochs": 3 if smoke else 6,
        "optim.schedule.warmup_epochs": 0,
        "device": "cpu",
        "threads": 1,
        "track.wandb": "disabled",
    }
    if not smoke:
        settings["data.path"] = photos.repeated(photos.prepare(40), 20).folder
    changes = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    with tempfile.TemporaryDirectory(dir=".") as folder:
        runs = []
        for number in range(1 if smoke else 3):
            runs.append([_train(Path(folder, f"{number}-{kill}"), changes, kill) for kill in (None, 1)])
    return {
        "command": "acdc train cifar/resnet20_dense --gpus 2",
        "settings": {key: str(value) for key, value in settings.items() if key != "data.path"},
        "left_alone": [_told(alone) for alone, _ in runs],
        "process_killed": [_told(killed) for _, killed in runs],
    }


def _told(run: _Run) -> dict[str, Any]:
    return {
        "seconds": round(run.seconds, 2),
        "epochs": run.epochs,
        **({} if run.killed_after is None else {"killed_after": round(run.killed_after, 2)}),
    }


def _train(out: Path, changes: Sequence[str], kill_in_epoch: int | None) -> _Run:
    command = [sys.executable, "-m", "acdc_cli", "train", "cifar/resnet20_dense", "--gpus", str(_RANKS)]
    began = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen([*command, *changes, "--out", str(out)], stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            killed = None if kill_in_epoch is None else _kill(process, RunDir(out), kill_in_epoch)
            code = process.wait()
        except BaseException:
            # it passes this on to its processes
            process.terminate()
            raise
        seconds = time.perf_counter() - began
        log.seek(0)
        said = log.read()
    if code or ("all processes restart" in said) != (killed is not None):
        raise AcdcError(f"{' '.join(command)} ended with {code}, or not as it should: {said[-2000:]}")
    epochs = [record["seconds"] for record in RunDir(out).records()]
    shutil.rmtree(out)
    return _Run(seconds, epochs, killed)


def _kill(launcher: subprocess.Popen[bytes], run: RunDir, epoch: int) -> float:
    """Kills a process of the run in the middle of an epoch; returns the seconds that the epoch had taken then."""
    while len(_records(run)) < epoch + 1:
        if launcher.poll() is not None:
            raise AcdcError("the run ended before it could be disturbed")
        time.sleep(0.01)
    began = time.perf_counter()
    time.sleep(0.5 * _records(run)[epoch]["seconds"])
    # the last one is rank 1: the launcher starts them in order
    os.kill(max(_children(launcher.pid)), signal.SIGKILL)
    return time.perf_counter() - began


def _records(run: RunDir) -> list[dict[str, Any]]:
    return run.records() if run.path.exists() else []


def _children(pid: int) -> list[int]:
    """Processes of the launcher that train."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    trains = [int(child) for child in children if b"train" in Path(f"/proc/{child}/cmdline").read_bytes()]
    if len(trains) != _RANKS:
        raise AcdcError(f"{_RANKS} processes were expected below {pid}, {len(trains)} are there")
    return trains
