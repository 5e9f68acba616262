"""What `acdc train` works on: its recipe, its run directory, and whether to resume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from acdc_cli.recipe.load import load
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.run_dir import RunDir, open_run

Resume = bool | Literal["auto"]
"""Resume an unfinished run; `auto`: only if there is one, and do nothing if it is finished."""


def recipe_and_run(source: str, overrides: Sequence[str], out: Path | None) -> tuple[str, Recipe, RunDir]:
    """The recipe's file, the recipe, and the directory of its run.

    source: a recipe file, a shipped recipe's name, or, to resume, a run directory.
    """
    if Path(source).is_dir():
        out, source = out or Path(source), str(open_run(Path(source)).resolved)
    recipe = load(source, overrides)
    return source, recipe, RunDir(out or Path("runs") / f"{recipe.name}-{recipe.seed}")
