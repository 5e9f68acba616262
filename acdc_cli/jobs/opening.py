"""What `acdc train` works on: its recipe, its run directory, and whether to resume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from acdc_cli import console
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


def with_own_code(recipe: Recipe, run: RunDir) -> Recipe:
    """The recipe of a run to resume, with the run's copy of its model's code, even if the original has changed."""
    if recipe.model.code is None or not run.resolved.exists():
        return recipe
    begun = load(run.resolved).model
    if begun.name != recipe.model.name or begun.code in (None, recipe.model.code):
        return recipe
    console.warn(f"{recipe.model.name} has changed since the run began, which resumes with its copy in {run.code}")
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"code": begun.code})})
