"""`extends` and `--set`: what is laid over what, and whose line an error names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from acdc_cli.errors import RecipeError
from acdc_cli.recipe.inherit import draft
from acdc_cli.recipe.load import load

PARENT = """\
name: parent
epochs: 100
model: {name: resnet20}
data:
  name: demo
  batch_size: 64
  resolution:
    - {since: 0, size: 160}
    - {since: 0.8, size: 192}
optim:
  name: sgd
  lr: 0.1
  momentum: 0.8
  schedule: {name: linear, warmup_epochs: 2, end: 0.1}
sparsity:
  method: acdc
  target: 0.9
  keep_dense: [first, last]
  sparse_epochs: 5
"""


@pytest.fixture(autouse=True)
def _parent(in_tmp: Path) -> None:
    Path("parent.yaml").write_text(PARENT)


def child(text: str) -> str:
    Path("child.yaml").write_text(f"extends: parent.yaml\n{text}")
    return "child.yaml"


def laid(text: str = "", *overrides: str) -> dict[str, Any]:
    values: dict[str, Any] = draft(child(text), overrides).root.plain()
    return values


def refusal(source: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        load(source, overrides)
    return str(error.value)


def test_a_child_without_keys_is_its_parent() -> None:
    assert load(child("")) == load("parent.yaml")
    assert "extends" not in laid()


def test_mappings_are_merged_key_by_key() -> None:
    assert laid("name: child\noptim: {lr: 1, schedule: {end: 0}}\n")["optim"] == {
        "name": "sgd",
        "lr": 1,
        "momentum": 0.8,
        "schedule": {"name": "linear", "warmup_epochs": 2, "end": 0},
    }


def test_a_list_replaces_the_one_below() -> None:
    values = laid("data: {resolution: [{since: 0, size: 128}]}\nsparsity: {keep_dense: []}\n")
    assert values["data"]["resolution"] == [{"since": 0, "size": 128}]
    assert values["sparsity"]["keep_dense"] == []


def test_chains_reach_the_last_file_and_folders_of_their_own() -> None:
    Path("deep").mkdir()
    Path("deep/middle.yaml").write_text("extends: ../parent.yaml\nname: middle\nepochs: 200\n")
    Path("top.yaml").write_text("extends: deep/middle.yaml\nname: top\n")
    recipe = load("top.yaml")
    assert (recipe.name, recipe.epochs, recipe.model.name) == ("top", 200, "resnet20")


def test_a_shipped_recipe_can_be_extended_by_its_name() -> None:
    Path("mine.yaml").write_text("extends: neurips21/resnet50_90\nname: mine\n")
    assert load("mine.yaml").data.batch_size == 256


def test_a_file_beside_goes_before_a_shipped_recipe_of_the_same_name() -> None:
    Path("demo.yaml").write_text(PARENT)
    Path("mine.yaml").write_text("extends: demo.yaml\n")
    assert load("mine.yaml").name == "parent"


def test_another_method_keeps_what_it_also_knows_and_forgets_the_rest() -> None:
    assert laid("sparsity: {method: gmp, end: 50%}\n")["sparsity"] == {
        "method": "gmp",
        "target": 0.9,
        "keep_dense": ["first", "last"],
        "end": "50%",
    }
    assert laid("sparsity: {method: dense}\n")["sparsity"] == {"method": "dense"}
    assert load(child("sparsity: {method: dense}\n")).sparsity.method == "dense"


def test_another_optimizer_or_schedule_does_the_same() -> None:
    assert laid("optim: {name: adamw, schedule: {name: step, milestones: [50]}}\n")["optim"] == {
        "name": "adamw",
        "lr": 0.1,
        "schedule": {"name": "step", "warmup_epochs": 2, "milestones": [50]},
    }


def test_another_model_does_not_inherit_the_options_of_the_one_below() -> None:
    below = "model: {options: {shortcut: conv}, blurpool: true}\n"
    assert laid(below, "model.name=resnet18")["model"] == {"name": "resnet18", "blurpool": True}
    for same in ("model.options.a=1", "model={name: resnet20, options: {a: 1}}"):
        assert laid(below, same)["model"]["options"] == {"shortcut": "conv", "a": 1}


def test_a_key_that_no_kind_knows_is_not_forgotten_silently() -> None:
    Path("parent.yaml").write_text(PARENT.replace("sparse_epochs", "sparse_epoch"))
    assert refusal(child("sparsity: {method: gmp}\n")).startswith(
        "parent.yaml:19: sparsity.sparse_epoch: unknown key (allowed: method, keep_dense, "
    )


def test_the_command_line_goes_over_the_file_by_the_same_rules_and_the_last_word_counts() -> None:
    values = laid("", "optim.lr=1e-4", "optim.lr=2e-4", "sparsity.method=dense", "model.options={drop_rate: 0.5}")
    assert values["optim"]["lr"] == 0.0002
    assert values["sparsity"] == {"method": "dense"}
    assert values["model"] == {"name": "resnet20", "options": {"drop_rate": 0.5}}


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("model.name=2:4", "2:4"),
        ("model.name=off", "off"),
        ("model.name='1'", "1"),
        ("model.name=a=b", "a=b"),
        ("model.name= a", "a"),
        ("model.name=~/a", "~/a"),
        ("model.name=[a, b]", ["a", "b"]),
        ("model.name=", None),
    ],
)
def test_a_value_on_the_command_line_reads_as_in_a_file(override: str, value: Any) -> None:
    assert laid("", override)["model"]["name"] == value


def test_errors_name_the_file_they_stem_from_the_child_first() -> None:
    Path("parent.yaml").write_text(PARENT.replace("lr: 0.1", "lr: none").replace("size: 192", "size: 0"))
    lines = refusal(child("name: child\ndata: {flip: 2}\n"), "seed=-1").split("\n")
    assert [line.partition(": expected")[0] for line in lines] == [
        "child.yaml:3: data.flip",
        "parent.yaml:9: data.resolution[1].size",
        "parent.yaml:12: optim.lr",
        "--set seed",
    ]


def test_a_wrong_value_that_is_laid_over_is_no_error() -> None:
    Path("parent.yaml").write_text(PARENT.replace("lr: 0.1", "lr: none"))
    assert load(child("optim: {lr: 0.2}\n")).optim.lr == 0.2


def test_a_missing_key_stands_where_its_block_does() -> None:
    Path("parent.yaml").write_text(PARENT.replace("  batch_size: 64\n", ""))
    said = "data.batch_size: missing; expected a whole number above 0"
    assert refusal("parent.yaml", "data.flip=0.0") == f"parent.yaml:4: {said}"
    assert refusal(child("data: {flip: 0.0}\n")) == f"child.yaml:2: {said}"


def test_a_circle_is_shown() -> None:
    Path("a.yaml").write_text("name: a\nextends: b.yaml\n")
    Path("b.yaml").write_text("extends: c.yaml\n")
    Path("c.yaml").write_text("\nextends: b.yaml\n")
    assert refusal("a.yaml") == ("c.yaml:2: extends: is circular: b.yaml → c.yaml → b.yaml; remove one extends")
    Path("a.yaml").write_text("extends: a.yaml\n")
    assert refusal("a.yaml") == "a.yaml:1: extends: is circular: a.yaml → a.yaml; remove one extends"


def test_a_parent_that_is_nowhere_is_named_with_the_nearest() -> None:
    Path("a.yaml").write_text("extends: resnet50_96.yaml\n")
    said = refusal("a.yaml")
    assert said.startswith("a.yaml:1: extends: there is no resnet50_96.yaml, ")
    assert "did you mean resnet50_98?" in said
    Path("a.yaml").write_text("extends: [b, c]\n")
    said = "extends: expected the path of one recipe, or a shipped recipe's name"
    assert refusal("a.yaml") == f'a.yaml:1: {said}, found ["b", "c"]'
