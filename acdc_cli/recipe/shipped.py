"""The recipes and studies that come with the package, and finding one by path or by name."""

from __future__ import annotations

import os
from pathlib import Path

from acdc_cli.errors import RecipeError
from acdc_cli.recipe.suggest import did_you_mean
from acdc_cli.recipe.syntax import one_line

_PACKAGE = Path(__file__).resolve().parent.parent
_INSTALLED = _PACKAGE / "recipes"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "recipes"
"""Inside the package if installed from a wheel, beside it in a checkout."""
_STUDIES = FOLDER / "studies"
PAPERS = FOLDER / "papers.yaml"
"""The list of the papers' tables and figures; no recipe."""


def names() -> list[str]:
    """`demo`, `resnet50_95`, …, `neurips21/resnet50_95`, …: the top level first."""
    return sorted(map(name_of, filter(_is_recipe, FOLDER.rglob("*.yaml"))), key=lambda name: (name.count("/"), name))


def _is_recipe(file: Path) -> bool:
    return not file.is_relative_to(_STUDIES) and file != PAPERS


def study_names() -> list[str]:
    """`epoch_length`, …"""
    return sorted(path.stem for path in _STUDIES.glob("*.yaml"))


def name_of(path: Path) -> str:
    """The name of a shipped recipe by its path."""
    return path.relative_to(FOLDER).with_suffix("").as_posix()


def find(name_or_path: str | Path) -> Path:
    """The file at this path, else the shipped recipe of this name, with or without `recipes/` and `.yaml`.

    Raises RecipeError where there is neither.
    """
    path = Path(name_or_path)
    # os.path's, which returns False for a name that no file can have
    if os.path.isfile(path):
        return path
    name = path.as_posix().removeprefix("recipes/").removesuffix(".yaml")
    shipped = FOLDER / f"{name}.yaml"
    inside = shipped.is_relative_to(FOLDER) and ".." not in shipped.parts
    if inside and _is_recipe(shipped) and os.path.isfile(shipped):
        return shipped
    if os.path.isdir(path):
        raise RecipeError(f"{name_or_path} is a folder; give a recipe file, or a name from `acdc recipes list`")
    near = did_you_mean(name, names())
    shown = one_line(str(name_or_path))
    raise RecipeError(f"no recipe {shown}: neither a file nor a shipped recipe{near} (see: acdc recipes list)")


def find_study(name_or_path: str | Path) -> Path:
    """The study file at this path, else the shipped one of this name, with or without `recipes/studies/` and `.yaml`.

    Raises RecipeError where there is neither.
    """
    path = Path(name_or_path)
    if os.path.isfile(path):
        return path
    name = path.as_posix().removeprefix("recipes/").removeprefix("studies/").removesuffix(".yaml")
    if name in study_names():
        return _STUDIES / f"{name}.yaml"
    near = did_you_mean(name, study_names())
    shown = one_line(str(name_or_path))
    raise RecipeError(
        f"no study {shown}: neither a file nor a shipped study{near} (there are: {', '.join(study_names())})"
    )


def description(path: Path) -> str:
    """The comment on the first line of a recipe or a study."""
    first, _, _ = path.read_text(encoding="utf-8").partition("\n")
    return first.removeprefix("#").strip() if first.startswith("#") else ""
