"""`acdc analyze`: one file an analysis, found by its name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from acdc_cli import analysis
from acdc_cli.errors import RunError
from acdc_cli.runs.run_dir import open_run


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(analysis.__path__))


def analyze(name: str, runs: Sequence[Path], out: Path | None = None) -> dict[str, Any]:
    """The analysis's numbers, JSON-able; `figures` lists the files it drew."""
    if name not in names():
        near = get_close_matches(name, names(), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise RunError(f"there is no analysis {name}{hint} (there are: {', '.join(names())})")
    opened = [open_run(path) for path in runs]
    module = importlib.import_module(f"acdc_cli.analysis.{name}")
    result: dict[str, Any] = module.analyze(opened, out or runs[0])
    return result
