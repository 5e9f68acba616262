"""The recipes that come with the package, and how a recipe is found by path or by name."""

from __future__ import annotations

from pathlib import Path

from acdc_cli.errors import RecipeError
from acdc_cli.recipe.suggest import did_you_mean

_PACKAGE = Path(__file__).resolve().parent.parent
_INSTALLED = _PACKAGE / "recipes"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "recipes"
"""Inside the package once it is installed from a wheel, beside it in a checkout."""


def names() -> list[str]:
    """`demo`, `resnet50_95`, …, `neurips21/resnet50_95`, …: the top level first."""
    return sorted(map(name_of, FOLDER.rglob("*.yaml")), key=lambda name: (name.count("/"), name))


def name_of(path: Path) -> str:
    """The name of a shipped recipe by its path."""
    return path.relative_to(FOLDER).with_suffix("").as_posix()


def find(name_or_path: str | Path) -> Path:
    """The file at this path, else the shipped recipe of this name, with or without `recipes/` and `.yaml`.

    Raises RecipeError where there is neither.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    name = path.as_posix().removeprefix("recipes/").removesuffix(".yaml")
    if name in names():
        return FOLDER / f"{name}.yaml"
    near = did_you_mean(name, names())
    raise RecipeError(f"no recipe {name_or_path}: neither a file nor a shipped recipe{near} (see: acdc recipes list)")


def description(path: Path) -> str:
    """The comment on a recipe's first line."""
    first, _, _ = path.read_text(encoding="utf-8").partition("\n")
    return first.removeprefix("#").strip() if first.startswith("#") else ""
