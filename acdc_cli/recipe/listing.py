"""List, show and copy the recipes and studies that come with the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from acdc_cli.errors import RecipeError
from acdc_cli.recipe import shipped
from acdc_cli.recipe.load import load, resolved_yaml
from acdc_cli.recipe.syntax import read_file, read_text, shown

_STUDIES = "studies/"
"""Prefix of a study's name, which a recipe may share."""


def list_recipes() -> list[dict[str, str]]:
    """Name, description and path of each; the studies are last."""
    paths = {name: shipped.find(name) for name in shipped.names()}
    paths |= {f"{_STUDIES}{name}": shipped.find_study(name) for name in shipped.study_names()}
    return [{"name": name, "description": shipped.description(path), "path": str(path)} for name, path in paths.items()]


def show(name: str, overrides: Sequence[str], resolved: bool) -> str:
    """The file as it is; if resolved or with overrides, every key with its value."""
    if not (resolved or overrides):
        return read_text(_find(name))
    if is_study(name):
        raise RecipeError(f"{name} is a study, which makes many recipes; list them with: acdc sweep {name} --dry-run")
    return resolved_yaml(load(name, overrides))


def copy(name: str, destination: Path | None) -> Path:
    """Writes a shipped recipe to a file or into a folder (default: here) and returns the new file's path.

    Raises RecipeError if that file exists.
    """
    source = _find(name).resolve()
    if not source.is_relative_to(shipped.FOLDER):
        raise RecipeError(f"{name} is not a shipped recipe; `acdc recipes copy` takes a name from `acdc recipes list`")
    target = destination or Path()
    if target.is_dir():
        target = target / source.name
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(_for_elsewhere(source))
    except FileExistsError as e:
        raise RecipeError(f"{shown(target)} exists; give another destination or remove it first") from e
    except OSError as e:
        raise RecipeError(f"{shown(target)} cannot be written: {e.strerror}") from e
    return target


def _find(name: str) -> Path:
    return shipped.find_study(name) if is_study(name) else shipped.find(name)


def is_study(name: str) -> bool:
    """Whether this is the name of a shipped study, as `list_recipes` gives it."""
    return name.removeprefix("recipes/").startswith(_STUDIES) and not Path(name).is_file()


def _for_elsewhere(source: Path) -> str:
    """The file's text; `extends` names a shipped recipe instead of a path beside the file."""
    text = source.read_text(encoding="utf-8")
    root, _ = read_file(source)
    assert isinstance(root.value, dict)
    parent = root.value.get("extends")
    if parent is None or parent.place.line is None:
        return text
    name = shipped.name_of((source.parent / str(parent.value)).resolve())
    lines = text.splitlines(keepends=True)
    lines[parent.place.line - 1] = lines[parent.place.line - 1].replace(str(parent.value), name)
    return "".join(lines)
