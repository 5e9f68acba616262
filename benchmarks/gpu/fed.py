"""Steps on batches that the FFCV loader brings against steps on one that lies on the device.

`python -m benchmarks.gpu.fed` makes the photographs that it reads, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from itertools import count
from statistics import median

import torch

from acdc_cli.data import image_loaders
from acdc_cli.data.batches import Loader
from acdc_cli.data.data_set import open_set
from acdc_cli.recipe.load import load
from benchmarks import photos
from benchmarks.assemble import Assembly, Resident, assemble, moment
from benchmarks.gpu.trial import Trial
from benchmarks.measure import Target, timed
from benchmarks.photos import Photos
from benchmarks.skipped import SkippedError
from benchmarks.sparse_step import settle

_FFCV, _RESIDENT = "FFCV .beton", "on the device already"
_SKIPPED_STEPS = 8
"""More than a loader draws ahead: from then on it gives no batch that it drew while nobody asked."""


def data(smoke: bool) -> Photos:
    """39 batches of 1024; the JPEGs of 2,000 photographs, each 20 times."""
    return photos.repeated(photos.prepare(40 if smoke else 2000), 2 if smoke else 20)


def run(trial: Trial) -> None:
    try:
        import acdc_cli.data.ffcv  # noqa: F401
    except (ImportError, OSError) as cause:
        raise SkippedError(f"FFCV cannot be used ({cause}): {image_loaders.FFCV_HINT}") from cause
    images = data(trial.smoke)
    side, batch_size = (32, 8) if trial.smoke else (160, 1024)
    settings = {
        "data.path": images.folder,
        "data.loader": "ffcv",
        "data.resolution": side,
        "data.batch_size": batch_size,
        "optim.lr": 0.001,
        "device": trial.device.type,
        **({"model.name": "resnet20"} if trial.smoke else {}),
    }
    recipe = load("resnet50_95", [f"{key}={value}" for key, value in settings.items()])
    trial.record(photos=images.facts)
    with closing(open_set(recipe.data).train_loader(recipe.seed, [side] * 1000, trial.device)) as loader:
        loader.warm_up()
        resident = Resident(batch_size, side, loader.steps, trial.device)
        assembly = assemble(recipe, resident)
        trial.record(precision=assembly.parts.precision.name, steps=loader.steps)
        epochs = count()
        contestants: dict[str, Callable[[], float]] = {
            _RESIDENT: lambda: _step_time(assembly, resident, next(epochs)),
            _FFCV: lambda: _step_time(assembly, loader, next(epochs)),
        }
        # compiles
        contestants[_RESIDENT]()
        alone: list[float] = []
        rounds: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in trial.rounds():
            alone.append(loader.steps * batch_size / timed(lambda: _draw(loader, next(epochs))).wall)
            for name, contestant in contestants.items():
                rounds[name].append(1000 * contestant())
                _tell(trial, rounds, alone, batch_size)


def _tell(trial: Trial, rounds: dict[str, list[float]], alone: list[float], batch_size: int) -> None:
    trial.record(
        step_ms={name: [round(each, 3) for each in times] for name, times in rounds.items()},
        loader_alone_images_per_second=[round(speed) for speed in alone],
    )
    trial.line("loader alone", median(alone), "images/s")
    if not rounds[_FFCV]:
        return
    trial.compare("step fed by FFCV / resident step", "ms", rounds, _FFCV, _RESIDENT, None)
    ratio = median(fed / lying for fed, lying in zip(rounds[_FFCV], rounds[_RESIDENT], strict=False))
    trial.line("fed by FFCV", 1000 * batch_size / median(rounds[_FFCV]), "images/s")
    trial.line("share of time waiting for data", max(0.0, 1 - 1 / ratio), "", Target("≤", 0.02))


def _step_time(assembly: Assembly, loader: Loader, epoch: int) -> float:
    """Seconds from one step's end to the next one's, waiting for data included, as the device sees it."""
    skipped = min(_SKIPPED_STEPS, loader.steps // 2)
    mark = _marker()
    with loader.epoch(epoch) as batches:
        for index, batch in enumerate(batches):
            assembly.trainer._take_step(batch, moment(assembly, 0), assembly.recipe.optim.lr)
            if index == skipped:
                begun = mark()
        ended = mark()
    settle()
    return between(begun, ended) / (loader.steps - skipped - 1)


Mark = float | torch.cuda.Event


def _marker() -> Callable[[], Mark]:
    """On CUDA an event in the stream, so that the host never waits."""
    if not torch.cuda.is_available():
        return time.perf_counter

    def mark() -> Mark:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    return mark


def between(begun: Mark, ended: Mark) -> float:
    """Seconds; the device must be idle."""
    if isinstance(begun, float) and isinstance(ended, float):
        return ended - begun
    assert isinstance(begun, torch.cuda.Event)
    milliseconds: float = begun.elapsed_time(ended)
    return milliseconds / 1000


def _draw(loader: Loader, epoch: int) -> None:
    with loader.epoch(epoch) as batches:
        for _ in batches:
            pass
    settle()


if __name__ == "__main__":
    print(data(smoke=False).facts)
