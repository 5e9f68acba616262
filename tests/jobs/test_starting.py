from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from digits import image_folders
from hypothesis import given
from hypothesis import strategies as st

from acdc_cli.data.describe import SetFacts
from acdc_cli.errors import AcdcError, RecipeError
from acdc_cli.jobs import starting
from acdc_cli.jobs.run_plan import plan
from acdc_cli.jobs.starting import Answers, has_target, measured, named, recipe_text, without_recipe, write_recipe
from acdc_cli.recipe.blocks.base import RunSize
from acdc_cli.recipe.kinds import method_config, methods
from acdc_cli.recipe.load import load


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folders(tmp_path_factory.mktemp("images"), shrink=6)


@pytest.fixture(scope="module")
def facts(images: Path) -> SetFacts:
    return measured(images)


@pytest.mark.parametrize("method", methods())
@given(epochs=st.integers(5, 300), steps=st.integers(20, 5000), target=st.sampled_from([0.5, 0.8, 0.9, 0.98]))
def test_what_a_method_proposes_fits_runs_of_any_length(method: str, epochs: int, steps: int, target: float) -> None:
    if method == "lottery":
        epochs *= 2
    config, size = method_config(method), RunSize(epochs, steps, 64)
    given_target = {"target": target} if has_target(method) else {}
    block = config.model_validate({"method": method} | given_target | config.proposed(size, target))
    assert list(block.check(size)) == []


@pytest.mark.parametrize("method", ["acdc", "rigl", "str", "dense"])
def test_a_written_recipe_plans_without_warnings(images: Path, facts: SetFacts, tmp_path: Path, method: str) -> None:
    out = tmp_path / "my.yaml"
    assert write_recipe(Answers(images, "resnet8", method, 0.9 if has_target(method) else None, 20), facts, out) == []
    recipe = load(out)
    assert (recipe.epochs, recipe.data.resolution, recipe.data.batch_size) == (20, 5, 8)
    assert recipe.name == f"images_resnet8_{method}" + ("_90" if has_target(method) else "")
    assert all(len(line) <= 120 for line in out.read_text().splitlines())
    assert re.search(r"^  lr: \S+ +# Peak learning rate", out.read_text(), re.MULTILINE)
    # a comment ends before a parenthesis, never within one
    assert re.search(r"^  mean: .+ +# Mean of the channels$", out.read_text(), re.MULTILINE)
    with pytest.raises(RecipeError, match="exists; choose another file"):
        write_recipe(Answers(images, "resnet8"), facts, out)


def test_a_recipe_that_cannot_be_trained_is_not_left_behind(images: Path, facts: SetFacts, tmp_path: Path) -> None:
    with pytest.raises(AcdcError, match="2 epochs"):
        write_recipe(Answers(images, "resnet8", epochs=2), facts, tmp_path / "my.yaml")
    with pytest.raises(AcdcError, match="no model 'resnet9'"):
        write_recipe(Answers(images, "resnet9"), facts, tmp_path / "my.yaml")
    without = replace(facts, splits={"val": facts.splits["val"]})
    with pytest.raises(AcdcError, match=r"has no training images: expected .*/train/CLASS/\*\.jpg"):
        write_recipe(Answers(images, "resnet8"), without, tmp_path / "my.yaml")
    assert list(tmp_path.iterdir()) == []


def test_names_of_any_folder_are_names_of_recipes(tmp_path: Path, images: Path, facts: SetFacts) -> None:
    odd = tmp_path / "_my: 'set' #1 ü"
    odd.symlink_to(images)
    text = recipe_text(Answers(odd, "resnet8"), facts)
    (tmp_path / "odd.yaml").write_text(text)
    recipe = load(tmp_path / "odd.yaml")
    assert recipe.data.path == str(odd)
    assert plan(recipe).name == named(Answers(odd, "resnet8"))


def test_a_model_without_a_recipe_has_the_usual_target(images: Path, tmp_path: Path) -> None:
    recipe = load(without_recipe("resnet8", images, tmp_path, epochs=12))
    assert (recipe.sparsity.method, recipe.sparsity.target) == ("acdc", starting.TARGET)  # type: ignore[attr-defined]
    assert load(without_recipe("resnet8", images, tmp_path, "dense")).sparsity.method == "dense"
    with pytest.raises(RecipeError, match="dense has no target"):
        without_recipe("resnet8", images, tmp_path, "dense", 0.9)
    with pytest.raises(RecipeError, match="demo is a recipe"):
        without_recipe("demo", images, tmp_path)
    with pytest.raises(RecipeError, match="did you mean acdc"):
        without_recipe("resnet8", images, tmp_path, "acdd")
