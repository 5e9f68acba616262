"""Models of `model.name: FILE.py:FUNCTION`: runs the file as `recipe.code` read it, not as it may be by now."""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import nn

from acdc_cli.errors import AcdcError, ModelError
from acdc_cli.recipe import code as own
from acdc_cli.recipe.code import Code
from acdc_cli.recipe.suggest import did_you_mean


def constructor(name: str, digest: str | None) -> Callable[..., nn.Module]:
    """The function of FILE.py:FUNCTION. Raises ModelError if the code is not at hand, or fails."""
    if digest is None or not own.at_hand(digest):
        raise ModelError(
            f"this model is made by {name}, a file that is not here: name its run directory, or the file with "
            f"--model {name} (model.name in a recipe)"
        )
    return partial(_called, name, own.known(digest))


def module_of(name: str, code: Code) -> ModuleType:
    with _running(name, code):
        return importlib.import_module(f"{_package(code)}.{code.entry.removesuffix('.py')}")


def _called(name: str, code: Code, **arguments: Any) -> nn.Module:
    module, function = module_of(name, code), name.rpartition(":")[2]
    if not callable(make := getattr(module, function, None)):
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ModelError(f"{module.__file__} has no function {function}{did_you_mean(function, there)}")
    with _running(name, code):
        model = make(**arguments)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} returned {type(model).__name__}, not a torch.nn.Module")
    return model


@contextlib.contextmanager
def _running(name: str, code: Code) -> Iterator[None]:
    """Within it, the file's imports find the modules beside it; an error in this code becomes a ModelError.

    What it prints is no data, so that it goes to stderr.
    """
    finder = _Finder(code)
    tops = {path.split("/")[0].removesuffix(".py") for path in code.files}
    hidden = {key: module for key, module in sys.modules.items() if key.split(".")[0] in tops}
    for key in hidden:
        del sys.modules[key]
    sys.meta_path.insert(0, finder)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except AcdcError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(own.blame(error) or f"{name}: {type(error).__name__}: {error}") from error
    finally:
        sys.meta_path.remove(finder)
        # two models may each have a module of that name; torch.compile looks modules up by their name in the package
        for key in [key for key in sys.modules if key.split(".")[0] in tops]:
            del sys.modules[key]
        sys.modules.update(hidden)


def _package(code: Code) -> str:
    """The package in which the file and those beside it are modules, unlike those of any other code."""
    return f"acdc_model_{code.digest}"


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of the code, by their names in its package and by those that scripts beside them would use."""

    def __init__(self, code: Code) -> None:
        self._code, self._package = code, _package(code)
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        top, _, rest = name.partition(".")
        stem = (rest if top == self._package else name).replace(".", "/")
        file = next((each for each in (f"{stem}/__init__.py", f"{stem}.py") if each in self._code.files), None)
        if file is None and stem and not any(each.startswith(f"{stem}/") for each in self._code.files):
            return None
        is_package = file is None or file.endswith("/__init__.py")
        spec = ModuleSpec(name, self, origin=str(self._code.folder / (file or stem)), is_package=is_package)
        spec.has_location, spec.loader_state = file is not None, file
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        if spec.name.split(".")[0] == self._package:
            return None
        # one module by two names
        module = importlib.import_module(f"{self._package}.{spec.name}")
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        if spec.name in self._specs:
            module.__spec__ = self._specs[spec.name]
        elif spec.loader_state is not None:
            compiled = compile(self._code.files[spec.loader_state], str(spec.origin), "exec", dont_inherit=True)
            # the first use of a file must not change the weights that are drawn next
            with torch.random.fork_rng(devices=[]):
                exec(compiled, module.__dict__)
