"""CPU time of drawing an image of a small set: kept and cut as a whole, and one image at a time."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acdc_cli.data.augment import CENTRED, PADDED, Crop
from acdc_cli.data.batches import Loader, Plan
from acdc_cli.data.beton import BetonFile, Sample, write_beton
from acdc_cli.data.resident import ResidentLoader
from acdc_cli.data.torch import MemoryImages, TorchLoader
from benchmarks.loader import epochs_of, one_core
from benchmarks.measure import Contestant, Target, alternate, compare, cpus

RESIDENT, SINGLE, FFCV = "resident", "one image at a time", "acdc ffcv"
SIDE = 32
PLANS = {
    "train, CPU": Plan(128, lambda epoch: SIDE, Crop(PADDED), 0.5, seed=0, shuffle=True),
    "validation, CPU": Plan(1000, lambda epoch: SIDE, Crop(CENTRED)),
}
"""As the recipes for CIFAR have it."""


def run(smoke: bool) -> dict[str, Any]:
    images, rounds = (256, 1) if smoke else (20_000, 5)
    comparisons = []
    with tempfile.TemporaryDirectory() as folder, one_core():
        file = _written(Path(folder), images)
        for name, plan in PLANS.items():
            with ExitStack() as stack:

                def ours(loader: Loader, stack: ExitStack = stack) -> Contestant:
                    return epochs_of(stack.enter_context(closing(loader)))

                cpu = torch.device("cpu")
                contestants = {
                    RESIDENT: ours(ResidentLoader(file, plan, cpu)),
                    SINGLE: ours(TorchLoader(MemoryImages(file), plan, 0, cpu)),
                }
                if _has_ffcv():
                    from acdc_cli.data.ffcv import FFCVLoader

                    contestants[FFCV] = ours(FFCVLoader(file, plan, 1, cpu))
                # without counting: compiles
                alternate(contestants, 1)
                measured = cpus(alternate(contestants, rounds), 1e6)
            for rival in (rival for rival in contestants if rival != RESIDENT):
                target = Target("≥", 5.0) if rival == SINGLE else None
                comparisons.append(compare(name, "µs/image", measured, rival, RESIDENT, target))
    return {"comparisons": comparisons, "images": images, "side": SIDE, "pinned_to_cores": 1}


def _written(folder: Path, images: int) -> BetonFile:
    random = np.random.default_rng(0)
    path = folder / "train.beton"
    pixels = (random.integers(0, 256, (SIDE, SIDE, 3), np.uint8).tobytes() for _ in range(images))
    write_beton(path, (Sample(index % 10, "raw", SIDE, SIDE, data) for index, data in enumerate(pixels)), images)
    return BetonFile(path)


def _has_ffcv() -> bool:
    try:
        import acdc_cli.data.ffcv  # noqa: F401
    except (ImportError, OSError):
        return False
    return True
