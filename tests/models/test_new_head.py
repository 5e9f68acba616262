"""`model.new_head`: all weights of a file but the classifier's, and `model.rename`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from acdc_cli.errors import ModelError, RecipeError
from acdc_cli.models import build, foreign
from acdc_cli.recipe import code
from acdc_cli.recipe.blocks.model import ModelBlock
from acdc_cli.recipe.load import load


def saved(path: Path, **changes: str) -> dict[str, Tensor]:
    """Weights of a ResNet-8 of ten classes in a file, with parts of names replaced; as they are in the model."""
    torch.manual_seed(7)
    state = build.build(ModelBlock(name="resnet8"), 10).state_dict()
    names = {name: name for name in state}
    for old, new in changes.items():
        names = {name: other.replace(old, new) for name, other in names.items()}
    torch.save({names[name]: tensor for name, tensor in state.items()}, path)
    return state


def started(path: Path, classes: int, seed: int = 0, **keys: Any) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return build.build(ModelBlock(name="resnet8", weights=str(path), **keys), classes).state_dict()


@pytest.mark.parametrize("classes", [3, 10])
@pytest.mark.parametrize("head", ["fc", "linear"])
def test_the_backbone_is_the_files_and_the_head_is_drawn_from_the_seed(tmp_path: Path, classes: int, head: str) -> None:
    before = saved(tmp_path / "w.pt", fc=head)
    first, again, other = (started(tmp_path / "w.pt", classes, seed, new_head=True) for seed in (0, 0, 1))
    for name in before:
        assert torch.equal(first[name], again[name])
        if name.startswith("fc."):
            assert first[name].shape[0] == classes
            assert not torch.equal(first[name], other[name])
        else:
            assert torch.equal(first[name], before[name])
    assert not torch.equal(first["fc.weight"][:3], before["fc.weight"][:3])


def test_the_head_is_that_of_the_model_built_without_a_file(tmp_path: Path) -> None:
    saved(tmp_path / "w.pt")
    torch.manual_seed(5)
    fresh = build.build(ModelBlock(name="resnet8"), 4).state_dict()
    assert torch.equal(started(tmp_path / "w.pt", 4, seed=5, new_head=True)["fc.weight"], fresh["fc.weight"])


def test_a_file_without_a_head_takes_a_new_one(tmp_path: Path) -> None:
    state = saved(tmp_path / "w.pt")
    torch.save({name: tensor for name, tensor in state.items() if not name.startswith("fc.")}, tmp_path / "w.pt")
    assert started(tmp_path / "w.pt", 4, new_head=True)["fc.weight"].shape == (4, 64)


def test_other_missing_layers_are_still_refused(tmp_path: Path) -> None:
    state = saved(tmp_path / "w.pt")
    del state["conv1.weight"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"does not fit the model .* missing: conv1.weight"):
        started(tmp_path / "w.pt", 4, new_head=True)


def test_the_head_may_be_any_layer(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.head = nn.Conv2d(4, num_classes, 1)\n"
        "        self.stem = nn.Linear(3, 4)\n"
        "    def forward(self, x):\n"
        "        x = self.stem(x.mean((2, 3)))\n"
        "        return self.head(x[:, :, None, None]).flatten(1)\n"
    )
    block = ModelBlock(**code.named(f"{tmp_path}/net.py:Net"))
    before = build.build(block, 10).state_dict()
    torch.save(before, tmp_path / "w.pt")
    again = block.model_copy(update={"weights": str(tmp_path / "w.pt"), "new_head": True})
    after = build.build(again, 5).state_dict()
    assert torch.equal(after["stem.weight"], before["stem.weight"])
    assert after["head.weight"].shape == (5, 4, 1, 1)


def test_a_model_that_ignores_the_classes_has_no_head(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from torch import nn\ndef make(num_classes): return nn.Linear(2, 2)\n")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
    block = ModelBlock(**code.named(f"{tmp_path}/net.py:make"), weights=str(tmp_path / "w.pt"), new_head=True)
    with pytest.raises(ModelError, match=r"no tensor of net.py:make depends on the number of classes; leave it out"):
        build.build(block, 5)


@pytest.mark.parametrize("head", ["fc", "linear"])
def test_without_it_other_classes_are_refused_with_its_name(tmp_path: Path, head: str) -> None:
    saved(tmp_path / "w.pt", fc=head)
    with pytest.raises(ModelError, match=r"is for 10 classes, but the data has 3: .*--set model.new_head=true"):
        started(tmp_path / "w.pt", 3)


@pytest.mark.parametrize(("key", "value"), [("new_head", "true"), ("rename", "[a=b]")])
def test_keys_about_a_file_need_one(key: str, value: str) -> None:
    with pytest.raises(RecipeError, match=rf"model\.{key}: .*set model.weights"):
        load("demo", [f"model.{key}={value}"])
    assert load("demo", [f"model.{key}={value}", "model.weights=w.pt"]).model.weights == "w.pt"


def test_renaming_replaces_text_in_order(tmp_path: Path) -> None:
    before = saved(tmp_path / "w.pt", layer="stages.s", fc="top.out")
    rules = ["stages.=", "s1=layer1", "s2=layer2", "s3=layer3", "top.out=fc"]
    after = started(tmp_path / "w.pt", 10, rename=rules)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["nowhere.=fc."], r"renaming nowhere\.=fc\. changes none of its \d+ names \(conv1\.weight, "),
        (["fc.=linear.", "fc.=out."], r"renaming fc\.=out\. changes none"),
        (
            ["layer1.=layer2."],
            r"renaming layer1\.=layer2\. makes layer2\.0\.\S+ of both layer1\.0\.\S+ and layer2\.0\.",
        ),
    ],
)
def test_a_rule_that_matches_nothing_or_joins_two_names_is_refused(
    tmp_path: Path, rules: list[str], message: str
) -> None:
    saved(tmp_path / "w.pt")
    with pytest.raises(ModelError, match=message):
        started(tmp_path / "w.pt", 10, rename=rules)


def test_obvious_rules_are_suggested_and_work(tmp_path: Path) -> None:
    before = saved(tmp_path / "w.pt", layer="trunk.stage", fc="top.out")
    with pytest.raises(ModelError) as caught:
        started(tmp_path / "w.pt", 10)
    words = str(caught.value).partition("The shapes fit: try ")[2].partition(" (model.rename")[0].split()
    rules = words[1::2]
    assert set(words[::2]) == {"--rename"}
    assert sorted(rules) == ["top.out.=fc.", *(f"trunk.stage{n}.=layer{n}." for n in (1, 2, 3))]
    after = started(tmp_path / "w.pt", 10, rename=rules)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_shapes_that_leave_doubt_suggest_nothing() -> None:
    square = torch.zeros(2, 2)
    doubtful = {"x.a.weight": square, "x.b.weight": square}
    assert foreign.suggested(doubtful, {"c.weight": square.shape, "d.weight": square.shape}) == []
    assert foreign.suggested(doubtful, {"y.a.weight": square.shape, "y.b.weight": square.shape}) == ["x.=y."]
    assert foreign.suggested(doubtful, {"y.a.weight": square.shape, "y.b.weight": torch.Size([3])}) == []


def test_files_of_many_other_names_suggest_nothing() -> None:
    # a pair of names more than are compared; with fewer, `x.=y.` is the rule
    counts = (math.isqrt(foreign._MOST_PAIRS) + 1, 3)
    for count, rules in zip(counts, ([], ["x.=y."]), strict=True):
        tensors = {f"x.{number}": torch.zeros(1) for number in range(count)}
        assert foreign.suggested(tensors, {f"y.{number}": torch.Size([1]) for number in range(count)}) == rules


def test_a_model_that_computes_its_widths_with_tensors_takes_a_new_head(tmp_path: Path) -> None:
    lines = (
        "import torch",
        "def make(num_classes, depth=1):",
        "    width = int(torch.linspace(4, 4, depth).max())",
        "    return torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Linear(width, num_classes))",
    )
    (tmp_path / "net.py").write_text("\n".join(lines))
    named = code.named(f"{tmp_path}/net.py:make")
    before = build.build(ModelBlock(**named), 5).state_dict()
    torch.save(before, tmp_path / "w.pt")
    block = ModelBlock(**named, weights=str(tmp_path / "w.pt"), new_head=True, options={"depth": 2})
    after = build.build(block, 3).state_dict()
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert after["1.weight"].shape == (3, 4)
