"""Methods by name."""

import subprocess
import sys

import pytest

from acdc_cli.errors import RecipeError
from acdc_cli.recipe.schema import SparsityBlock
from acdc_cli.sparsity import catalog
from acdc_cli.sparsity.sparsifier import Sparsifier


def test_the_methods_of_the_first_release_are_there() -> None:
    assert {"acdc", "dense", "gmp"} <= set(catalog.names())


@pytest.mark.parametrize("name", catalog.names())
def test_every_method_has_a_configuration_and_hooks(name: str) -> None:
    config, method = catalog.method(name)
    assert issubclass(config, SparsityBlock)
    assert issubclass(method, Sparsifier)
    assert config.__module__ == method.__module__ == f"acdc_cli.sparsity.methods.{name}"


def test_an_unknown_method_suggests_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"no method 'acdcc', only acdc, deepr, dense, .*did you mean acdc\?"):
        catalog.method("acdcc")


def test_listing_the_methods_imports_no_torch() -> None:
    code = "import sys; from acdc_cli.sparsity import catalog; assert catalog.names(); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"
