"""The check of the GPUs: driver, torch's CUDA, what each device can."""

from __future__ import annotations

import os
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from acdc_cli.doctor.verdict import Verdict, error, ok, warning

_CPU = "training will be on the CPU"


@dataclass(frozen=True)
class Device:
    name: str
    memory_gib: float
    bf16: bool
    """Computed by the device itself, not emulated."""


@dataclass(frozen=True)
class Facts:
    driver: str | None
    """Version of the NVIDIA driver, where `nvidia-smi` finds a GPU."""
    cuda: str | None
    """Version of CUDA that torch is built for."""
    devices: Sequence[Device]
    """That torch can use."""
    problem: str = ""
    """Why torch can use none."""
    visible: str | None = None
    """CUDA_VISIBLE_DEVICES."""


def gpu() -> Verdict:
    import torch

    problem = ""
    with warnings.catch_warnings():
        # said of old drivers by `is_available`; `init` raises the same
        warnings.simplefilter("ignore")
        if not torch.cuda.is_available():
            try:
                torch.cuda.init()  # type: ignore[no-untyped-call]
            except (RuntimeError, AssertionError) as cause:
                problem = str(cause).partition(". ")[0].strip()
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = [_device(index) for index in range(count)]
    return judge(Facts(_driver(), torch.version.cuda, devices, problem, os.environ.get("CUDA_VISIBLE_DEVICES")))


def judge(facts: Facts) -> Verdict:
    if not facts.devices:
        return _judge_absence(facts)
    each = ", ".join(f"{device.name} ({device.memory_gib:.0f} GiB)" for device in facts.devices)
    found = f"{each}; driver {facts.driver or 'unknown'}, torch for CUDA {facts.cuda}"
    if not all(device.bf16 for device in facts.devices):
        return warning(f"{found}; no bf16, which precision `auto` takes", "--set precision=fp16")
    return ok(f"{found}, bf16")


def _judge_absence(facts: Facts) -> Verdict:
    if facts.driver is None:
        fix = "nothing, if there is no GPU; else install NVIDIA's driver (in a container: docker run --gpus all)"
        return warning(f"no NVIDIA GPU with its driver was found: {_CPU}", fix)
    if facts.cuda is None:
        fix = "pip install --force-reinstall torch torchvision from the index that pytorch.org names for your CUDA"
        return error(f"there is a GPU (driver {facts.driver}), but this torch is built without CUDA: {_CPU}", fix)
    if facts.visible is not None:
        return warning(
            f"CUDA_VISIBLE_DEVICES={facts.visible!r} leaves torch no GPU: {_CPU}", "unset CUDA_VISIBLE_DEVICES"
        )
    return error(
        f"there is a GPU (driver {facts.driver}), but torch for CUDA {facts.cuda} cannot use it "
        f"({facts.problem or 'it gives no reason'}): {_CPU}",
        "update NVIDIA's driver, or install the torch that pytorch.org names for the CUDA that `nvidia-smi` prints",
    )


def _device(index: int) -> Device:
    import torch

    found = torch.cuda.get_device_properties(index)
    return Device(found.name, found.total_memory / 2**30, bf16=found.major >= 8)


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0].strip() or None
