"""Provenance of a run's numbers: versions, commit, device, data, command."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("acdc-cli", "torch", "torchvision", "timm", "ffcv", "numpy", "numba", "wandb")


def provenance(device: torch.device, precision: str, data: dict[str, Any], command: list[str]) -> dict[str, Any]:
    """What others need to assess or repeat the run, as JSON types."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions(),
        "git": _git(),
        "device": describe(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "data": data,
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that affect the numbers."""
    installed = {}
    for name in _PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def describe(device: torch.device) -> str:
    """The device in words, for example "NVIDIA H100 80GB HBM3" or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def cpu_model() -> str:
    """The processor's name if the system reports it, otherwise its architecture."""
    try:
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def command_line() -> list[str]:
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def _git() -> dict[str, Any] | None:
    """Commit of acdc's own checkout, and whether it has uncommitted changes; None if acdc is installed."""
    try:
        _run_git("ls-files", "--error-unmatch", Path(__file__).name)
        return {"commit": _run_git("rev-parse", "HEAD"), "dirty": bool(_run_git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _run_git(*arguments: str) -> str:
    folder = Path(__file__).parent
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
