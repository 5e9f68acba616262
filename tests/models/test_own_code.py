"""Models made by a file of the user's: what it may import, and what is said of its mistakes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from acdc_cli.errors import AcdcError, ModelError, RecipeError
from acdc_cli.jobs import model_list
from acdc_cli.models import build
from acdc_cli.models.preprocessing import preprocessing
from acdc_cli.recipe import code
from acdc_cli.recipe.blocks.model import ModelBlock

MAKE = "from torch import nn\ndef make(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))\n"
SIZED = "from {module} import SIZE\nfrom torch import nn\ndef make(num_classes): return nn.Linear(SIZE, num_classes)\n"


def written(folder: Path, **texts: str) -> Path:
    """Files by their paths without `.py`."""
    for name, text in texts.items():
        file = folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def made(file: Path, function: str = "make", classes: int = 3, **options: int) -> nn.Module:
    return build.build(ModelBlock(**code.named(f"{file}:{function}"), options=options), classes)


def test_a_function_makes_the_model_for_the_classes(tmp_path: Path) -> None:
    written(tmp_path, net=MAKE)
    assert made(tmp_path / "net.py")(torch.zeros(2, 3, 2, 2)).shape == (2, 3)


def test_options_are_its_arguments(tmp_path: Path) -> None:
    written(tmp_path, net="from torch import nn\ndef make(num_classes, width): return nn.Linear(width, num_classes)\n")
    assert made(tmp_path / "net.py", width=7).weight.shape == (3, 7)


@pytest.mark.parametrize(
    ("module", "files"),
    [
        ("sizes", {"sizes": "SIZE = 5\n"}),
        (".sizes", {"sizes": "SIZE = 5\n"}),
        ("sizes", {"sizes": "from deeper import SIZE\n", "deeper": "SIZE = 5\n"}),
        ("parts", {"parts/__init__": "from .sizes import SIZE\n", "parts/sizes": "SIZE = 5\n"}),
        ("parts.sizes", {"parts/sizes": "from ..other import SIZE\n", "other": "SIZE = 5\n"}),
        ("parts.sizes", {"parts/sizes": "import other.inner\nSIZE = other.inner.SIZE\n", "other/inner": "SIZE = 5\n"}),
    ],
)
def test_it_may_import_what_lies_beside_it(tmp_path: Path, module: str, files: dict[str, str]) -> None:
    written(tmp_path, net=SIZED.format(module=module), unused="raise SystemError\n", **files)
    if module == "parts.sizes" and "other" in files:
        # a module of a folder may import from around the folder, as in a package
        (tmp_path / "net.py").write_text(SIZED.format(module=".parts.sizes"))
    assert made(tmp_path / "net.py").weight.shape == (3, 5)
    own = code.read(tmp_path / "net.py")
    assert sorted(own.files) == sorted(["net.py", *(f"{name}.py" for name in files)])


def test_a_sibling_imported_inside_the_function_is_found_too(tmp_path: Path) -> None:
    lines = ("import sizes", "from torch import nn", "return nn.Linear(sizes.SIZE, num_classes)")
    written(tmp_path, net="\n    ".join(("def make(num_classes):", *lines)), sizes="SIZE = 5\n")
    assert made(tmp_path / "net.py").weight.shape == (3, 5)


def test_two_models_may_each_have_a_module_of_the_same_name(tmp_path: Path) -> None:
    for size in (4, 6):
        written(tmp_path / str(size), net=SIZED.format(module="sizes"), sizes=f"SIZE = {size}\n")
    first, second, again = (made(tmp_path / folder / "net.py") for folder in ("4", "6", "4"))
    assert [model.weight.shape[1] for model in (first, second, again)] == [4, 6, 4]


def test_the_standard_library_is_never_a_file_beside_it(tmp_path: Path) -> None:
    written(tmp_path, net="import random, torch\nrandom.seed\n" + MAKE, random="1 / 0\n", torch="1 / 0\n")
    assert isinstance(made(tmp_path / "net.py"), torch.nn.Module)
    assert list(code.read(tmp_path / "net.py").files) == ["net.py"]


def test_the_digest_is_of_the_contents_wherever_they_lie(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        written(tmp_path / folder, net=SIZED.format(module="sizes"), sizes="SIZE = 4\n", other="1\n")
    one, two = (code.read(tmp_path / folder / "net.py").digest for folder in ("one", "two"))
    assert one == two
    written(tmp_path / "two", other="2\n")
    assert code.read(tmp_path / "two/net.py").digest == one
    written(tmp_path / "two", sizes="SIZE = 5\n")
    assert code.read(tmp_path / "two/net.py").digest != one


def test_what_was_read_runs_even_if_the_file_has_changed_since(tmp_path: Path) -> None:
    written(tmp_path, net=SIZED.format(module="sizes"), sizes="SIZE = 4\n")
    block = ModelBlock(**code.named(f"{tmp_path}/net.py:make"))
    written(tmp_path, sizes="1 / 0\n")
    assert build.build(block, 3).weight.shape == (3, 4)


def test_the_first_use_of_a_file_does_not_change_the_weights(tmp_path: Path) -> None:
    written(tmp_path, net="import torch\ntorch.rand(3)\n" + MAKE)
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        weights.append(made(tmp_path / "net.py")[1].weight)
    assert torch.equal(*weights)


def test_what_it_prints_is_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, net=MAKE.replace("def", "print('hello')\ndef"))
    made(tmp_path / "net.py")
    assert capsys.readouterr() == ("", "hello\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def mak(num_classes): pass\n", "net.py has no function make; did you mean mak?"),
        ("make = 3\n", "net.py has no function make"),
        ("def make(num_classes): return 3\n", "net.py:make returned int, not a torch.nn.Module"),
        ("def make(): return 3\n", "net.py:make: TypeError: make() got an unexpected keyword argument 'num_classes'"),
        (
            "import sizes\ndef make(num_classes):\n    return sizes.half(0)\n",
            "sizes.py:1: ZeroDivisionError: division by",
        ),
        ("def make(num_classes):\n    return num_classes.nothing\n", "net.py:2: AttributeError: 'int' object has no"),
        ("import nowhere_installed\n", "net.py:1: ModuleNotFoundError: No module named 'nowhere_installed'"),
        ("import sys\n\nsys.exit('done')\n", "net.py:3: SystemExit: done"),
        ("def make(:\n", "net.py:1: not valid Python: invalid syntax"),
        ("\nfrom ..above import x\n", "net.py:2: imports from above "),
    ],
)
def test_a_mistake_in_it_is_one_line_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    written(tmp_path, net=text, sizes="def half(x): return 1 / x\n")
    with pytest.raises(AcdcError) as caught:
        made(tmp_path / "net.py")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_missing_function_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no file .*nets/net.py; model.name takes FILE.py:FUNCTION"):
        code.named(f"{tmp_path}/nets/net.py:make")
    with pytest.raises(RecipeError, match=r"net.py: name the function .* net.py:FUNCTION"):
        code.named("net.py")


@pytest.mark.parametrize("limit", ["_MOST_FILES", "_MOST_BYTES"])
def test_code_of_very_many_files_or_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    written(tmp_path, net="import sizes\n" + MAKE, sizes="half = 0.5\n")
    monkeypatch.setattr(code, limit, 1)
    with pytest.raises(RecipeError, match=r"net\.py imports more than"):
        code.named(f"{tmp_path}/net.py:make")


@pytest.mark.parametrize("name", ["\0", "x" * 5000, "~nobody-here/net", "."])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=r"model.name takes FILE.py:FUNCTION"):
        code.named(f"{name}.py:make")


def test_a_recipe_of_a_checkpoint_never_runs_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, net=MAKE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(code, "_known", {})
    for digest in (None, "0123456789abcdef"):
        with pytest.raises(ModelError, match="a file that is not here"):
            build.build(ModelBlock(name="net.py:make", code=digest), 3)


def test_it_may_say_that_it_is_for_small_images(tmp_path: Path) -> None:
    written(tmp_path, net=MAKE, small="SMALL_IMAGES = True\n" + MAKE)
    assert preprocessing(f"{tmp_path}/net.py:make", Path()).resize == 256
    assert preprocessing(f"{tmp_path}/small.py:make", Path()).resize is None


def test_it_is_listed_with_its_cost(tmp_path: Path) -> None:
    text = "SMALL_IMAGES = True\nfrom torch import nn\ndef make(num_classes): return nn.Sequential("
    written(tmp_path, net=text + "nn.Conv2d(3, 2, 32, bias=False), nn.Flatten(), nn.Linear(2, num_classes))\n")
    (listed,) = model_list.measured(model_list.matching(f"{tmp_path}/net.py:make"), 1)
    assert (listed.library, listed.side, listed.params) == ("file", 32, 3 * 2 * 32 * 32 + 2 * 10 + 10)
    assert listed.flops == 2 * (3 * 2 * 32 * 32 + 2 * 10)


@pytest.mark.slow
def test_it_can_be_compiled_as_one_graph(tmp_path: Path) -> None:
    block = "from torch import nn\nHALF = 0.5\nclass Block(nn.Linear):\n    def forward(self, x): return x * HALF\n"
    text = "from blocks import Block\ndef make(num_classes): return Block(num_classes, num_classes)\n"
    written(tmp_path, net=text, blocks=block)
    compiled = torch.compile(made(tmp_path / "net.py"), backend="eager", fullgraph=True)
    assert compiled(torch.ones(1, 3)).tolist() == [[0.5, 0.5, 0.5]]


@pytest.mark.parametrize("options", [{}, {"depth": 30}])
def test_a_model_of_too_many_modules_is_refused_before_it_takes_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, int]
) -> None:
    layers = "[nn.ReLU() for _ in range(depth)]"
    written(
        tmp_path,
        net=f"from torch import nn\ndef make(num_classes, depth=30): return nn.Sequential(*{layers})\n",
    )
    assert len(made(tmp_path / "net.py", **options)) == 30
    monkeypatch.setattr(build, "_MOST_MODULES", 29)
    with pytest.raises(ModelError, match="it has more than 29 modules"):
        made(tmp_path / "net.py", **options)


def test_a_module_of_the_same_name_that_is_imported_already_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ModuleType("sizes")
    other.SIZE = 9  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sizes", other)
    written(tmp_path, net=SIZED.format(module="sizes"), sizes="SIZE = 4\n")
    assert made(tmp_path / "net.py").weight.shape == (3, 4)
    assert sys.modules["sizes"] is other
