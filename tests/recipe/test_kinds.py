"""Methods by name."""

import subprocess
import sys

import pytest

from acdc_cli.recipe.blocks.sparsity import SparsityBlock
from acdc_cli.recipe.kinds import method_class, method_config, methods
from acdc_cli.sparsity.sparsifier import Sparsifier


def test_the_methods_of_the_first_release_are_there() -> None:
    assert {"acdc", "dense", "gmp"} <= set(methods())


@pytest.mark.parametrize("name", methods())
def test_every_method_has_a_configuration_and_hooks(name: str) -> None:
    config, method = method_config(name), method_class(name)
    assert issubclass(config, SparsityBlock)
    assert issubclass(method, Sparsifier)
    assert config.__module__ == method.__module__ == f"acdc_cli.sparsity.methods.{name}"


def test_listing_the_methods_imports_no_torch() -> None:
    code = "import sys; from acdc_cli.recipe.kinds import methods; assert methods(); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"
