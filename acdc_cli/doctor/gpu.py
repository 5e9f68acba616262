"""The GPU check: driver, torch's CUDA, and the capabilities of each device."""

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
    """Supported in hardware, not emulated."""


@dataclass(frozen=True)
class CudaInstallation:
    driver: str | None
    """Version of the NVIDIA driver, if `nvidia-smi` detects a GPU."""
    cuda: str | None
    """CUDA version that torch is built for."""
    devices: Sequence[Device]
    """Devices that torch can use."""
    problem: str = ""
    """Why torch can use none."""
    visible: str | None = None
    """CUDA_VISIBLE_DEVICES."""


def gpu() -> Verdict:
    import torch

    problem = ""
    with warnings.catch_warnings():
        # `is_available` warns about old drivers; `init` raises the same message
        warnings.simplefilter("ignore")
        if not torch.cuda.is_available():
            try:
                torch.cuda.init()  # type: ignore[no-untyped-call]
            except (RuntimeError, AssertionError) as cause:
                problem = str(cause).partition(". ")[0].strip()
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = [_device(index) for index in range(count)]
    return judge(
        CudaInstallation(_driver(), torch.version.cuda, devices, problem, os.environ.get("CUDA_VISIBLE_DEVICES"))
    )


def judge(facts: CudaInstallation) -> Verdict:
    if not facts.devices:
        return _judge_absence(facts)
    each = ", ".join(f"{device.name} ({device.memory_gib:.0f} GiB)" for device in facts.devices)
    result = f"{each}; driver {facts.driver or 'unknown'}, torch for CUDA {facts.cuda}"
    if not all(device.bf16 for device in facts.devices):
        return warning(f"{result}; no bf16, the default of precision `auto`", "--set precision=fp16")
    return ok(f"{result}, bf16")


def _judge_absence(facts: CudaInstallation) -> Verdict:
    if facts.driver is None:
        fix = "none needed without a GPU; otherwise install NVIDIA's driver (in a container: docker run --gpus all)"
        return warning(f"no NVIDIA GPU with a driver was detected: {_CPU}", fix)
    if facts.cuda is None:
        fix = "pip install --force-reinstall torch torchvision from the pytorch.org index for your CUDA version"
        return error(f"there is a GPU (driver {facts.driver}), but this torch is built without CUDA: {_CPU}", fix)
    if facts.visible is not None:
        return warning(
            f"CUDA_VISIBLE_DEVICES={facts.visible!r} hides all GPUs from torch: {_CPU}", "unset CUDA_VISIBLE_DEVICES"
        )
    return error(
        f"there is a GPU (driver {facts.driver}), but torch for CUDA {facts.cuda} cannot use it "
        f"({facts.problem or 'it gives no reason'}): {_CPU}",
        "update NVIDIA's driver, or install the torch that pytorch.org lists for the CUDA that `nvidia-smi` shows",
    )


def _device(index: int) -> Device:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return Device(properties.name, properties.total_memory / 2**30, bf16=properties.major >= 8)


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0].strip() or None
