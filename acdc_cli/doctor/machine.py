"""Checks of the cores, memory, shared memory and disks available to this process."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from acdc_cli import files
from acdc_cli.doctor import cgroup
from acdc_cli.doctor.verdict import Verdict, error, ok, warning
from acdc_cli.errors import AcdcError, RunError
from acdc_cli.recipe.load import load
from acdc_cli.schedule.sizes import sizes

_GIB = 2**30
_LITTLE_MEMORY = 4 * _GIB
_LITTLE_DISK = 2 * _GIB
"""A ResNet-50 run takes 1 GB: two checkpoints, a third while it is being written, two models, masks."""
_SLOW_SYNC = 1.0
"""Seconds."""
_BATCHES_AHEAD = 2
"""Batches that each worker of torch's DataLoader prefetches: its prefetch_factor."""
_EXAMPLE = "resnet50_95"


@dataclass(frozen=True)
class Threads:
    cores: int
    """Cores that the system lets this process run on."""
    limit: float | None
    """CPU quota of its control group, in cores."""
    torch: int
    """Threads per operation."""
    library: str
    """Library that starts the threads: OpenMP."""


def threads() -> Verdict:
    import torch

    backend = "ATen parallel backend: "
    lines = torch.__config__.parallel_info().splitlines()
    library = next((line.removeprefix(backend) for line in lines if line.startswith(backend)), "unknown")
    return judge_threads(Threads(_cores(), cgroup.cpu_limit(), torch.get_num_threads(), library))


def judge_threads(facts: Threads) -> Verdict:
    usable = facts.cores if facts.limit is None else max(1, min(facts.cores, math.ceil(facts.limit)))
    quota = "" if facts.limit is None else f", CPU quota {facts.limit:g}"
    result = f"{facts.cores} cores{quota}; torch uses {facts.torch} threads ({facts.library})"
    if max(facts.torch, facts.cores) > usable:
        more = "more threads would start than can run at once"
        return warning(f"{result}: {more}", f"--set threads={usable} --set data.workers={usable}")
    return ok(result)


def memory() -> Verdict:
    rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(rows[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    return judge_memory(total, free, cgroup.memory_limit())


def judge_memory(total: int, free: int, limit: int | None) -> Verdict:
    """In bytes. limit: that of the control group."""
    result = f"{_gib(free)} free of {_gib(total)}" + ("" if limit is None else f", limited to {_gib(limit)}")
    if min(free, total if limit is None else limit) < _LITTLE_MEMORY:
        return warning(
            f"{result}: too little for training", "lower data.batch_size and data.workers, or stop other programs"
        )
    return ok(result)


def shared_memory() -> Verdict:
    recipe = load(_EXAMPLE)
    data = recipe.images
    batch = 3 * data.batch_size * max(*sizes(recipe), data.val_crop) ** 2
    place = Path("/dev/shm")
    return judge_shared_memory(shutil.disk_usage(place).free if place.is_dir() else 0, _cores(), batch)


def judge_shared_memory(free: int, workers: int, batch: int) -> Verdict:
    """In bytes. batch: size of one batch of images, which torch's workers pass through shared memory."""
    needed = workers * _BATCHES_AHEAD * batch
    result = f"{_gib(free)} free in /dev/shm"
    if free >= needed:
        return ok(result)
    fitting = free // (_BATCHES_AHEAD * batch)
    return warning(
        f"{result}; {workers} worker processes of the torchvision loader (FFCV has none) need {_gib(needed)} for "
        f"{_EXAMPLE}",
        f"docker run --shm-size={math.ceil(needed / _GIB)}g, or --set data.workers={fitting}",
    )


@dataclass(frozen=True)
class Disk:
    place: Path
    free: int
    """Free space in bytes."""
    problem: str = ""
    """Why a file cannot be written there."""
    seconds: float = 0.0
    """Time for a small file to reach the disk."""


def runs_disk(out: Path) -> Verdict:
    return judge_disk(_disk(out), "--out FOLDER, on a disk that can be written to")


def data_disk(folder: Path) -> Verdict:
    verdict = judge_disk(_disk(folder), "acdc data write … --out FOLDER, and --set data.path=FOLDER")
    # existing data can still be read
    return verdict._replace(status="warning") if verdict.status == "error" else verdict


def judge_disk(facts: Disk, elsewhere: str) -> Verdict:
    """elsewhere: how to use another folder."""
    result = f"{_gib(facts.free)} free in {facts.place}"
    if facts.problem:
        return error(f"{result}, but no file can be written: {facts.problem}", elsewhere)
    if facts.free < _LITTLE_DISK:
        return warning(f"{result}: too little for a ResNet-50 run or a set of photographs", elsewhere)
    result = f"{result}; writing a file takes {1000 * facts.seconds:.0f} ms"
    if facts.seconds > _SLOW_SYNC:
        return warning(f"{result}: every checkpoint will be slow", elsewhere)
    return ok(result)


def _disk(folder: Path) -> Disk:
    """The disk of the folder or of its nearest existing parent. Writes, syncs, renames and locks a file, then removes
    it."""
    place = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(place).free
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".acdc-doctor-") as scratch:
            began = time.perf_counter()
            with files.locked(Path(scratch) / "lock", RunError("a new lock file is locked")):
                files.write_text(Path(scratch) / "file", "0" * 2**20)
            return Disk(place, free, seconds=time.perf_counter() - began)
    except (OSError, AcdcError) as cause:
        return Disk(place, free, str(cause))


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size / 2**20:.0f} MiB"
