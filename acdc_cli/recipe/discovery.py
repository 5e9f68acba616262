"""Folders of which every file is one thing of a kind: nothing else lists methods, analyses and export formats."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from acdc_cli.errors import RunError
from acdc_cli.recipe.suggest import did_you_mean

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Folder:
    """The files lie above this layer, and are therefore imported by name."""

    package: str
    kind: str
    """What one is called in errors."""

    @property
    def _path(self) -> Path:
        return _ROOT.joinpath(*self.package.split("."))

    def names(self) -> list[str]:
        """In alphabetical order. Imports none."""
        return sorted(module.name for module in pkgutil.iter_modules([str(self._path)]) if not module.ispkg)

    def described(self) -> dict[str, str]:
        """The first line of each file's docstring, by name. Imports none."""
        return {name: _first_line(self._path / f"{name}.py") for name in self.names()}

    def module(self, name: str) -> ModuleType:
        """Raises RunError where there is none of that name."""
        if name not in self.names():
            hint = did_you_mean(name, self.names())
            raise RunError(f"there is no {self.kind} {name}, only {', '.join(self.names())}{hint}")
        return importlib.import_module(f"{self.package}.{name}")


METHODS = Folder("acdc_cli.sparsity.methods", "method")
ANALYSES = Folder("acdc_cli.analysis", "analysis")
FORMATS = Folder("acdc_cli.deploy.formats", "format")


def _first_line(file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_text()))
    assert text is not None, f"{file} has no docstring"
    return text.splitlines()[0]
