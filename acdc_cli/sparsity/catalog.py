"""The methods of sparse training: one file of `methods` each, its configuration `Config` and its hooks `Method`."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from acdc_cli.errors import RecipeError
from acdc_cli.recipe.schema import SparsityBlock
from acdc_cli.recipe.suggest import did_you_mean
from acdc_cli.sparsity import methods

if TYPE_CHECKING:
    from acdc_cli.sparsity.sparsifier import Sparsifier


def names() -> list[str]:
    """Every method, in alphabetical order; none is imported, nor is torch."""
    return sorted(module.name for module in iter_modules(methods.__path__))


def method(name: str) -> tuple[type[SparsityBlock], type[Sparsifier[Any]]]:
    """The method's `Config` and `Method`. Raises RecipeError if there is no such method."""
    known = names()
    if name not in known:
        hint = did_you_mean(name, known)
        raise RecipeError(f"sparsity.method: there is no method {name!r}, only {', '.join(known)}{hint}")
    module = import_module(f"{methods.__name__}.{name}")
    return module.Config, module.Method
