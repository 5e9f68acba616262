"""The launcher for this machine: each worker has its own GPU and its share of the cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from signal import Signals

from acdc_cli.studies import tether
from acdc_cli.studies.grid import Cell


@dataclass(frozen=True)
class Worker:
    cores: tuple[int, ...]
    gpu: str | None
    """Value of CUDA_VISIBLE_DEVICES; None: the run sees the GPUs that this process sees."""

    @property
    def environment(self) -> dict[str, str]:
        # torch would start one thread per core of the machine, or as many as this process was configured for
        threads = {"OMP_NUM_THREADS": str(len(self.cores))}
        return threads if self.gpu is None else threads | {"CUDA_VISIBLE_DEVICES": self.gpu}


def workers(count: int, cores: Sequence[int], gpus: Sequence[str]) -> list[Worker]:
    """`count` workers with neighbouring cores and one GPU each; GPUs or cores are shared if there are too few."""
    starts = [i * len(cores) // count for i in range(count + 1)]
    return [
        Worker(tuple(cores[start : max(start + 1, end)]), gpus[i % len(gpus)] if gpus else None)
        for i, (start, end) in enumerate(pairwise(starts))
    ]


class LocalJob:
    def __init__(self, process: subprocess.Popen[bytes], worker: Worker) -> None:
        self._process = process
        self.worker = worker

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self, signal: Signals) -> None:
        self._process.send_signal(signal)


class Local:
    """Runs end with this process: even if it is killed, they receive SIGTERM and save."""

    outlives = False

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self._jobs: list[LocalJob] = []
        self.slots = len(workers)

    def under_way(self) -> tuple[str, ...]:
        return ()

    def start(self, cell: Cell, command: Sequence[str], environment: Mapping[str, str], log: Path) -> LocalJob:
        self._jobs = [job for job in self._jobs if job.poll() is None]
        busy = [job.worker for job in self._jobs]
        # compared by identity, because two workers may be equal
        worker = next(worker for worker in self._workers if not any(worker is other for other in busy))
        cores = ",".join(map(str, worker.cores))
        tethered = [sys.executable, "-I", "-S", str(Path(tether.__file__)), str(os.getpid()), cores, *command]
        with log.open("ab") as file:
            process = subprocess.Popen(
                tethered,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | environment | worker.environment,
                # Ctrl-C then reaches only this process, which forwards it once
                start_new_session=True,
            )
        self._jobs.append(LocalJob(process, worker))
        return self._jobs[-1]
