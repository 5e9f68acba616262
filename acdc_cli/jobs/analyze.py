"""`acdc analyze`: one file an analysis, found by its name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acdc_cli import analysis
from acdc_cli.errors import RunError
from acdc_cli.recipe.suggest import did_you_mean
from acdc_cli.runs.run_dir import open_run


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(analysis.__path__))


def analyze(name: str, runs: Sequence[Path], out: Path | None = None) -> dict[str, Any]:
    """The analysis's numbers, JSON-able; `figures` lists the files it drew."""
    if name not in names():
        hint = did_you_mean(name, names())
        raise RunError(f"there is no analysis {name}, only {', '.join(names())}{hint}")
    opened = [open_run(path) for path in runs]
    module = importlib.import_module(f"acdc_cli.analysis.{name}")
    result: dict[str, Any] = module.analyze(opened, out or runs[0])
    return result
