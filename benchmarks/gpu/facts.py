"""The machine and its software, as far as speed depends on them."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib import metadata
from typing import Any

import torch

from benchmarks.gpu.trial import Trial

_QUERY = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm", "clocks.max.mem", "temperature.gpu")


def run(trial: Trial) -> None:
    trial.record(
        torch={"version": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    )
    trial.record(memory=_memory(), disk_free_GiB=round(shutil.disk_usage(".").free / 2**30, 1))
    packages = sorted((dist.name, dist.version) for dist in metadata.distributions())
    trial.record(packages=dict(packages))
    trial.record(environment={name: value for name, value in os.environ.items() if name.startswith(_BEARING)})
    if trial.cuda:
        properties = torch.cuda.get_device_properties(trial.device)
        trial.record(
            gpu={
                "name": properties.name,
                "compute_capability": f"{properties.major}.{properties.minor}",
                "memory_GiB": round(properties.total_memory / 2**30, 1),
                "multiprocessors": properties.multi_processor_count,
                "nvidia_smi": _nvidia_smi(),
            }
        )


_BEARING = ("OMP_", "MKL_", "CUDA_", "CUBLAS_", "CUDNN_", "NCCL_", "PYTORCH_", "TORCH", "NUMBA_")
"""Beginnings of environment variables that speed depends on."""


def _memory() -> dict[str, float]:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    shared = shutil.disk_usage("/dev/shm")
    return {"total_GiB": round(pages * size / 2**30, 1), "shared_free_GiB": round(shared.free / 2**30, 1)}


def _nvidia_smi() -> dict[str, Any] | str:
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return dict(zip(_QUERY, done.stdout.strip().split(", "), strict=False))
