"""Removing run directories, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from acdc_cli.errors import RunError
from acdc_cli.runs.overview import find_runs, is_run, overview
from acdc_cli.runs.run_dir import RunDir


@dataclass(frozen=True)
class Removable:
    path: Path
    description: str
    """Status, epochs and size."""


def removable(paths: Sequence[Path]) -> list[Removable]:
    """Raises RunError for the first that may not be removed; all are checked before any is removed."""
    return [_checked(path) for path in paths]


def _checked(path: Path) -> Removable:
    if path.is_symlink():
        raise RunError(f"{path} is a link; name the run directory itself, {path.resolve()}")
    if not is_run(path):
        raise RunError(f"{path} is not a run directory; `acdc runs list` shows those that are")
    if inner := [run for folder in path.iterdir() if folder.is_dir() for run in find_runs([folder])]:
        raise RunError(f"{path} holds other runs, such as {inner[0]}; remove those first")
    seen = overview(path)
    if seen.status == "running" or RunDir(path).in_use:
        raise RunError(f"a process is training in {path}; stop it first")
    size = sum(file.lstat().st_size for file in path.rglob("*"))
    return Removable(path, f"{seen.status}, {seen.epoch} of {seen.epochs or '?'} epochs, {size / 1e6:,.1f} MB")


def remove(path: Path) -> None:
    """Raises RunError if a process has begun to train there, or if something cannot be removed."""
    with RunDir(path).locked():
        try:
            shutil.rmtree(path)
        except OSError as error:
            raise RunError(f"{error.filename} cannot be removed: {error.strerror}; remove it by hand") from error
