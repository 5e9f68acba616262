"""CPU time of drawing an image on one core: our loaders, torchvision with PIL, and DALI, on the same JPEGs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, PILToTensor, RandomHorizontalFlip, RandomResizedCrop

from acdc_cli.data import image_loaders
from acdc_cli.data.batches import Loader
from acdc_cli.data.data_set import open_set
from acdc_cli.recipe.blocks.images import ImagesBlock
from benchmarks import photos
from benchmarks.measure import Contestant, Target, Timing, alternate, compare, cpus, timed, walls
from benchmarks.photos import Photos
from benchmarks.skipped import SkippedError

FFCV, TORCH, PIL, DALI = "acdc ffcv", "acdc torch", "torchvision PIL", "DALI"
_TARGETS = {PIL: Target("≥", 1.6), DALI: Target("≥", 1.0), TORCH: None}
_DALI_PYTHON = Path(".venv-dali/bin/python")
_NO_DALI = "DALI: skipped: .venv-dali is not there (benchmarks/dali.sh makes it)"


def run(smoke: bool) -> dict[str, Any]:
    try:
        import acdc_cli.data.ffcv  # noqa: F401
    except (ImportError, OSError) as cause:
        raise SkippedError(f"FFCV cannot be used ({cause}): {image_loaders.FFCV_HINT}") from cause
    data = photos.prepare(40 if smoke else 2000)
    batch_size, rounds = (20, 1) if smoke else (100, 5)
    comparisons = []
    for side in (160,) if smoke else (160, 224):
        with one_core(), _contestants(data, side, batch_size) as contestants:
            # without counting: compiles, starts, reads the files into the page cache
            alternate(contestants, 1)
            measured = alternate(contestants, rounds)
        for rival in (name for name in measured if name != FFCV):
            target = _TARGETS[rival]
            comparisons.append(compare(f"{side} px, CPU", "ms/image", cpus(measured, 1000), rival, FFCV, target))
            comparisons.append(compare(f"{side} px, wall", "ms/image", walls(measured, 1000), rival, FFCV))
    return {
        "comparisons": comparisons,
        "photos": data.facts,
        "pinned_to_cores": 1,
        "dali": _dali_version(),
        "notes": [] if _DALI_PYTHON.exists() else [_NO_DALI],
    }


@contextmanager
def one_core() -> Iterator[None]:
    """Everything that is started here shares one core, so that wall time is time per core too."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {max(cores)})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


@contextmanager
def _contestants(data: Photos, side: int, batch_size: int) -> Iterator[dict[str, Contestant]]:
    """Each draws an epoch, shuffled, cropped and flipped at random, and returns the time of an image."""
    with ExitStack() as stack:

        def ours(kind: str, workers: int) -> Contestant:
            block = ImagesBlock.model_validate(
                {
                    "name": "photos",
                    "path": str(data.folder),
                    "loader": kind,
                    "workers": workers,
                    "batch_size": batch_size,
                    "resolution": side,
                }
            )
            loader = open_set(block).train_loader(seed=0, sizes=[side] * 1000, device=torch.device("cpu"))
            return epochs_of(stack.enter_context(closing(loader)))

        contestants = {FFCV: ours("ffcv", 1), PIL: _pil(data, side, batch_size), TORCH: ours("torch", 0)}
        if _DALI_PYTHON.exists():
            contestants[DALI] = stack.enter_context(_dali(data, side, batch_size))
        yield contestants


def epochs_of(loader: Loader) -> Contestant:
    epochs = count()

    def draw() -> None:
        with loader.epoch(next(epochs)) as batches:
            for batch in batches:
                assert batch.inputs.dtype == torch.uint8

    return lambda: timed(draw).per(loader.samples)


def _pil(data: Photos, side: int, batch_size: int) -> Contestant:
    """As in torchvision's reference training script, less what comes after the uint8 tensor."""
    transform = Compose([RandomResizedCrop(side), RandomHorizontalFlip(), PILToTensor()])
    folder = ImageFolder(str(data.jpegs), transform)
    loader = DataLoader(folder, batch_size, shuffle=True)

    def draw() -> None:
        for images, _ in loader:
            assert images.dtype == torch.uint8

    return lambda: timed(draw).per(len(folder))


@contextmanager
def _dali(data: Photos, side: int, batch_size: int) -> Iterator[Contestant]:
    """In a process of its own, which draws an epoch whenever a line comes in, and times itself."""
    command = [str(_DALI_PYTHON), "benchmarks/dali_worker.py", str(data.jpegs), str(side), str(batch_size)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    requests, answers = process.stdin, process.stdout

    def draw() -> Timing:
        requests.write("\n")
        requests.flush()
        answer = answers.readline()
        if not answer:
            raise RuntimeError(f"DALI's process ended with {process.wait()}")
        timing = json.loads(answer)
        return Timing(timing["wall"], timing["cpu"]).per(timing["images"])

    try:
        yield draw
    finally:
        requests.close()
        process.wait()


def _dali_version() -> str | None:
    if not _DALI_PYTHON.exists():
        return None
    command = [str(_DALI_PYTHON), "-c", "import nvidia.dali; print(nvidia.dali.__version__)"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()
