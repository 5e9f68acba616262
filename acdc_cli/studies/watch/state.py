"""The state of the runs that are watched, and of this machine's GPUs."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acdc_cli.errors import AcdcError
from acdc_cli.runs.overview import Overview
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.runs.run_table import one
from acdc_cli.studies.screen import Progress, seconds_per_epoch

_QUERY = "index,name,utilization.gpu,memory.used,memory.total"


@dataclass(frozen=True)
class Watched:
    seen: Overview
    records: Sequence[Mapping[str, Any]]
    """Records of its epochs; empty if they cannot be read."""
    left: float | None
    """Estimate of the remaining seconds; None for a run that is not training, or before its first epoch has ended."""


def watched_runs(paths: Sequence[Path], now: float | None = None) -> list[Watched]:
    """Raises RunError for what is not a run directory."""
    return [_watched_run(path, time.time() if now is None else now) for path in paths]


def _watched_run(path: Path, now: float) -> Watched:
    seen, run = one(path), RunDir(path)
    try:
        records = run.records()
    except AcdcError:
        records = []
    if seen.status != "running" or not records or seen.epochs is None:
        return Watched(seen, records, None)
    seconds = seconds_per_epoch(records)
    since = now - run.metrics.stat().st_mtime
    return Watched(seen, records, Progress(seen.epochs, len(records), seconds=seconds, since=since).left)


def gpus() -> list[str]:
    """A line for each GPU of this machine; empty if there is none, or if its driver does not answer."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [described(line) for line in answer.splitlines() if line.count(",") == _QUERY.count(",")]


def described(line: str) -> str:
    """A line of nvidia-smi in words; values that a device does not report are as nvidia-smi shows them."""
    index, name, load, used, total = (part.strip() for part in line.split(","))
    memory = f"{int(used) / 1024:.1f} of {int(total) / 1024:.0f}" if (used + total).isdigit() else f"{used} of {total}"
    return f"GPU {index} {name}: {load} % busy, {memory} GiB"
