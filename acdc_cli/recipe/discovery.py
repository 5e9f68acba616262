"""Folders in which each file is a method, analysis, model, task, data set or export format; nothing else lists them."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import pkgutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from acdc_cli.errors import RunError
from acdc_cli.recipe.suggest import did_you_mean


@dataclass(frozen=True)
class Folder:
    """A folder of such files. They belong to higher layers, so they are imported by name."""

    package: str
    kind: str
    """The word for one file in errors."""

    def _paths(self) -> list[str]:
        spec = importlib.util.find_spec(self.package)
        assert spec is not None
        return list(spec.submodule_search_locations or ())

    def names(self) -> list[str]:
        """The files' names in alphabetical order, without importing them."""
        return list(_names_in(tuple((path, os.stat(path).st_mtime_ns) for path in self._paths())))

    def described(self) -> dict[str, str]:
        """The first line of each file's docstring, by name, without importing them."""
        files = [(module.name, Path(path)) for path in self._paths() for module in pkgutil.iter_modules([path])]
        return {name: _first_line(path / f"{name}.py") for name, path in sorted(files) if name in self.names()}

    def file(self, name: str) -> Path:
        """The file of that name, which exists."""
        return next(file for path in self._paths() if (file := Path(path) / f"{name}.py").exists())

    def module(self, name: str) -> ModuleType:
        """The module of that name. Raises RunError if there is none."""
        if name not in self.names():
            hint = did_you_mean(name, self.names())
            raise RunError(f"there is no {self.kind} {name}, only {', '.join(self.names())}{hint}")
        return importlib.import_module(f"{self.package}.{name}")

    def table(self, key: str) -> dict[str, Any]:
        """The entries of all files' dictionaries called `key`. Imports all files."""
        entries: dict[str, Any] = {}
        for name in self.names():
            more = getattr(self.module(name), key, {})
            assert not entries.keys() & more.keys(), f"{name} redefines {entries.keys() & more.keys()}"
            entries |= more
        return entries


METHODS = Folder("acdc_cli.sparsity.methods", "method")
ANALYSES = Folder("acdc_cli.analysis", "analysis")
MODELS = Folder("acdc_cli.models", "model")
TASKS = Folder("acdc_cli.tasks", "task")
POLICIES = Folder("acdc_cli.data.policies", "augmentation policy")
DATA_SETS = Folder("acdc_cli.data.sets", "data set")
INPUTS = Folder("acdc_cli.data.inputs", "kind of inputs")
TARGETS = Folder("acdc_cli.transfer.targets", "kind of inputs that transfer works on")
FORMATS = Folder("acdc_cli.deploy.formats", "format")


@lru_cache
def _names_in(folders: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    """The names of the modules in folders, each with the time at which it was changed: it is asked for at every key of
    a recipe."""
    modules = pkgutil.iter_modules([path for path, _ in folders])
    return tuple(sorted(module.name for module in modules if not module.ispkg))


def _first_line(file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_text()))
    assert text is not None, f"{file} has no docstring"
    return text.splitlines()[0]
