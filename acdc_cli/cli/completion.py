"""What a shell completes: recipes, runs, methods, keys. Never imports torch: each Tab starts a process."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path


def recipes(incomplete: str) -> list[str]:
    from acdc_cli.recipe import shipped

    return _beginning(incomplete, shipped.names())


def studies(incomplete: str) -> list[str]:
    from acdc_cli.recipe import shipped

    return _beginning(incomplete, shipped.study_names())


def runs(incomplete: str) -> list[str]:
    """Run directories below `runs` and `studies`."""
    from acdc_cli.runs.overview import find_runs

    homes = [home for home in (Path("runs"), Path("studies")) if home.is_dir()]
    return _beginning(incomplete, map(str, find_runs(homes)))


def recipes_and_runs(incomplete: str) -> list[str]:
    return [*recipes(incomplete), *runs(incomplete)]


def methods(incomplete: str) -> list[str]:
    from acdc_cli.recipe.discovery import METHODS

    return _beginning(incomplete, METHODS.names())


def analyses(incomplete: str) -> list[str]:
    from acdc_cli.recipe.discovery import ANALYSES

    return _beginning(incomplete, ANALYSES.names())


def keys(incomplete: str) -> list[str]:
    """Keys of a recipe, as `--set` takes them."""
    return _beginning(incomplete, (f"{key}=" for key in _keys()))


def _keys() -> Iterator[str]:
    from acdc_cli.recipe.blocks.sparsity import SparsityBlock, TargetBlock
    from acdc_cli.recipe.discovery import METHODS
    from acdc_cli.recipe.explain import homes
    from acdc_cli.recipe.kinds import DATA_BLOCKS, recipe_class, shape_of

    recipes = [shape_of(recipe_class(SparsityBlock, inputs)) for inputs in DATA_BLOCKS.values()]
    yield from dict.fromkeys(".".join(path) for recipe in recipes for path in homes(recipe))
    yield from (f"sparsity.{key}" for key in TargetBlock.model_fields)
    # a method's own keys, without importing its file, which imports torch
    for name in METHODS.names():
        yield from (f"sparsity.{key}" for key in _annotated(METHODS.file(name)))


def _annotated(file: Path) -> Iterator[str]:
    """The fields of the class `Config` in a method's file."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            yield from (each.target.id for each in node.body if _is_field(each))  # type: ignore[attr-defined]


def _is_field(node: ast.stmt) -> bool:
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})
