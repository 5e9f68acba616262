"""Memory of `acdc train` on a data set and on one four times as large."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import photos
from benchmarks.measure import Target, compare
from benchmarks.photos import Photos

_TIMES = 4
_PERIOD = 0.02
"""Seconds between two looks."""


def run(smoke: bool) -> dict[str, Any]:
    count, rounds, batch_size = (40, 1, 20) if smoke else (2000, 2, 100)
    small = photos.prepare(count)
    large = photos.repeated(small, _TIMES)
    names = f"{count * _TIMES:,} photos", f"{count:,} photos"
    peaks: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        # as many steps in both: four epochs of the small set, one of the large
        peaks[names[1]].append(_peak(small, _TIMES, batch_size) / 2**20)
        peaks[names[0]].append(_peak(large, 1, batch_size) / 2**20)
    growth = median(peaks[names[0]]) - median(peaks[names[1]])
    return {
        "comparisons": [compare("peak memory of training", "MiB", peaks, *names, Target("≤", 1.05))],
        "bytes_per_further_image": round(growth * 2**20 / (count * (_TIMES - 1))),
        "beton_bytes": {
            name: (photo.folder / "train.beton").stat().st_size
            for name, photo in zip(names, (large, small), strict=True)
        },
        "photos": small.facts,
        "notes": [
            "Memory is RssAnon of the process and its children: pages of the mapped .beton count as resident too, but "
            "they are the page cache, which the system takes back whenever it wants."
        ],
    }


def _peak(data: Photos, epochs: int, batch_size: int) -> int:
    """Bytes at the highest moment of a training run."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "model.name": "resnet8",
            "data.path": data.folder,
            "data.batch_size": batch_size,
            "data.augment": "random_resized_crop",
            "optim.lr": 0.001,
            "epochs": epochs,
            "optim.schedule.warmup_epochs": 0,
            "device": "cpu",
            "track.wandb": "disabled",
        }
        changes = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        command = [
            sys.executable,
            "-m",
            "acdc_cli",
            "train",
            "cifar/resnet20_dense",
            *changes,
            "--out",
            f"{folder}/run",
        ]
        log = Path(folder, "log")
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            peak = 0
            while process.poll() is None:
                peak = max(peak, sum(_anonymous(pid) for pid in _family(process.pid)))
                time.sleep(_PERIOD)
        if process.returncode:
            raise RuntimeError(f"acdc train failed:\n{log.read_text()}")
    return peak


def _family(pid: int) -> Iterator[int]:
    """A process and all its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in _read(children).split():
            yield from _family(int(child))


def _anonymous(pid: int) -> int:
    """Resident bytes that belong to no file."""
    for line in _read(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    # a process that ended between two looks
    except (FileNotFoundError, ProcessLookupError):
        return ""
