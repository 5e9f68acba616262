"""ResNet-50 at 160 px on a GPU: images a second, waiting for data, memory, the trainer's and the masks' cost."""

from __future__ import annotations

import gc
from contextlib import closing
from itertools import count
from statistics import median
from typing import Any

import torch

from acdc_cli.data import loaders
from acdc_cli.data.batches import Loader
from acdc_cli.recipe.load import load
from benchmarks import photos, sparse_step, trainer
from benchmarks.assemble import Assembly, Resident, assemble, moment
from benchmarks.measure import Target, Timing, alternate, compare, speeds, timed, walls
from benchmarks.skipped import SkippedError

_SIDE = 160
_FFCV, _RESIDENT = "FFCV .beton", "on the GPU already"
_METHODS = ("acdc", "gmp", "rigl", "snfs", "dpf")
"""Each kind of step once: masked gradients, dense momentum beside them, latent weights."""
_STEP_TARGET = Target("≤", 1.01)
_SKIPPED_STEPS = 8
"""More than a loader draws ahead: from then on it gives no batch that it drew while nobody asked."""


def run(smoke: bool) -> dict[str, Any]:
    if not torch.cuda.is_available():
        raise SkippedError("it needs a CUDA device")
    batch_size = 32 if smoke else 1024
    comparisons = []
    fed, facts = _feeding(batch_size, smoke)
    comparisons.append(fed)
    for size in (batch_size,) if smoke else (256, batch_size):
        _forget()
        case = trainer.Case("resnet50_dense", size, _SIDE, 1000, steps=2 if smoke else 20, rounds=1 if smoke else 7)
        rounds = trainer.measure(case, "cuda")
        speed = speeds(rounds, case.images)
        comparisons.append(compare(str(case), "images/s", speed, *trainer.PAIR, trainer.TARGET))
    case = sparse_step.Case("resnet50_dense", batch_size, _SIDE, steps=2 if smoke else 10, rounds=1 if smoke else 7)
    for method in _METHODS:
        _forget()
        rounds = walls(sparse_step.measure(case, [method], "cuda"), 1000)
        comparisons.append(compare(f"{method}, {case}", "ms/step", rounds, method, "dense", _STEP_TARGET))
    _forget()
    facts["mask_update_ms"] = [round(1000 * timing.wall, 2) for timing in sparse_step.updates_of(case, "cuda")]
    notes = [f"{key.replace('_', ' ')}: {value}" for key, value in facts.items() if not isinstance(value, dict)]
    return {"comparisons": comparisons, **facts, "notes": notes}


def _feeding(batch_size: int, smoke: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Steps on batches that a loader brings against steps on one that lies there; the comparison, and further facts."""
    data = photos.repeated(photos.prepare(40 if smoke else 2000), 10 if smoke else 20)
    settings = {
        "data.path": data.folder,
        "data.loader": "ffcv",
        "data.resolution": _SIDE,
        "data.batch_size": batch_size,
        "optim.lr": 0.001,
        "device": "cuda",
    }
    recipe = load("resnet50_95", [f"{key}={value}" for key, value in settings.items()])
    device = torch.device("cuda")
    with closing(loaders.train_loader(recipe.data, recipe.seed, recipe.epochs, device)) as loader:
        loader.warm_up()
        resident = Resident(batch_size, _SIDE, loader.steps, device)
        assembly = assemble(recipe, resident)
        epochs = count()
        contestants = {
            _FFCV: lambda: _step_time(assembly, loader, next(epochs)),
            _RESIDENT: lambda: _step_time(assembly, resident, next(epochs)),
        }
        alternate(contestants, 1)
        torch.cuda.reset_peak_memory_stats()
        rounds = walls(alternate(contestants, 1 if smoke else 5), 1000)
        drawn = timed(lambda: _draw(loader, next(epochs))).per(loader.steps * batch_size)
    line = compare(f"step, batch {batch_size}, fed by", "ms/step", rounds, _FFCV, _RESIDENT)
    return line, {
        "images_per_second_resident": round(1000 * batch_size / median(rounds[_RESIDENT])),
        "images_per_second_fed": round(1000 * batch_size / median(rounds[_FFCV])),
        "images_per_second_of_the_loader_alone": round(1 / drawn.wall),
        "share_of_time_the_gpu_waits_for_data": round(max(0.0, 1 - 1 / line["ratio"]), 4),
        "peak_memory_allocated_GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "peak_memory_reserved_GiB": round(torch.cuda.max_memory_reserved() / 2**30, 2),
        "precision": assembly.parts.precision.name,
        "photos": data.facts,
    }


def _step_time(assembly: Assembly, loader: Loader, epoch: int) -> Timing:
    """Of the GPU, from one step's end to the next one's, waiting included; without the host ever waiting for it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    skipped = min(_SKIPPED_STEPS, loader.steps // 2)

    def train() -> None:
        with loader.epoch(epoch) as batches:
            for index, batch in enumerate(batches):
                assembly.trainer._take_step(batch, moment(assembly, 0), assembly.recipe.optim.lr)
                if index == skipped:
                    start.record()
            end.record()
        end.synchronize()

    cpu = timed(train).cpu
    steps = loader.steps - skipped - 1
    return Timing(start.elapsed_time(end) / 1000 / steps, cpu / loader.steps)


def _draw(loader: Loader, epoch: int) -> None:
    with loader.epoch(epoch) as batches:
        for _ in batches:
            pass


def _forget() -> None:
    """What the last benchmark held on the GPU, and what was compiled for it."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
