"""The recipes of the shipped studies' runs, which take seconds to load, once for all tests."""

from __future__ import annotations

from functools import cache

from acdc_cli.recipe.schema import Recipe
from acdc_cli.studies.study import load_study


@cache
def recipes(study: str) -> dict[str, Recipe]:
    """By the runs' keys."""
    loaded = load_study(study).recipes()
    assert loaded
    return loaded
