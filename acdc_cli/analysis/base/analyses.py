"""The analyses: every file of this package's parent is one, and nothing else needs to be told of it.

Such a file has a docstring, whose first line says what it is; `analyze(subjects, options, workspace) -> Findings`;
where there is something to choose, a `Block` named `Options`; and its measures as public functions of tensors, models
and loaders.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from acdc_cli.errors import RunError
from acdc_cli.recipe.suggest import did_you_mean

if TYPE_CHECKING:
    from acdc_cli.analysis.base.findings import Findings
    from acdc_cli.analysis.base.subject import Subject
    from acdc_cli.analysis.base.workspace import Workspace
    from acdc_cli.recipe.schema import Block

_FOLDER = Path(__file__).resolve().parent.parent
_PACKAGE = __name__.removesuffix(".base.analyses")


class Analysis(Protocol):
    def analyze(self, subjects: Sequence[Subject], options: Block, workspace: Workspace) -> Findings: ...


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules([str(_FOLDER)]) if not module.ispkg)


def described() -> dict[str, str]:
    """What each analysis is, in a line; none is imported."""
    return {name: _first_line(_FOLDER / f"{name}.py") for name in names()}


def find(name: str) -> tuple[Analysis, type[Block]]:
    """An analysis and its options. Raises RunError where there is none of that name."""
    if name not in names():
        hint = did_you_mean(name, names())
        raise RunError(f"there is no analysis {name}, only {', '.join(names())}{hint}")
    # here, because `acdc --help` lists the analyses and has no need of pydantic
    from acdc_cli.recipe.schema import Block

    module = importlib.import_module(f"{_PACKAGE}.{name}")
    options: type[Block] = getattr(module, "Options", Block)
    return cast(Analysis, module), options


def _first_line(file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_text()))
    assert text is not None, f"{file} has no docstring"
    return text.splitlines()[0]
