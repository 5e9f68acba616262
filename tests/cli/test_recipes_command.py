"""`acdc recipes list | show | copy`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from acdc_cli.cli.recipes import app
from acdc_cli.errors import RecipeError
from acdc_cli.recipe import listing as jobs
from acdc_cli.recipe import shipped
from acdc_cli.recipe.load import load
from acdc_cli.studies.study import load_study


def recipes(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_list_names_and_describes_every_recipe_and_study() -> None:
    listed = jobs.list_recipes()
    studies = [f"studies/{name}" for name in shipped.study_names()]
    assert [recipe["name"] for recipe in listed] == shipped.names() + studies
    assert all(Path(recipe["path"]).is_file() and recipe["description"] for recipe in listed)


def test_list_prints_a_table_or_json() -> None:
    code = "from acdc_cli.cli.recipes import app; import sys; app(sys.argv[1:], standalone_mode=False); print("
    code += "'torch' in sys.modules, file=sys.stderr)"
    table = subprocess.run([sys.executable, "-c", code, "list"], capture_output=True, text=True, check=True)
    assert "resnet50_95" in table.stdout
    assert "ResNet-50, ImageNet: AC/DC++, 95 % sparse" in " ".join(table.stdout.split())
    assert table.stderr == "False\n"
    listed = recipes("list", "--json")
    assert json.loads(listed.stdout) == jobs.list_recipes()


def test_show_prints_the_file_as_it_stands() -> None:
    assert jobs.show("demo_gmp", [], resolved=False) == shipped.find("demo_gmp").read_text(encoding="utf-8")


def test_show_resolved_prints_a_recipe_that_needs_no_other(in_tmp: Path) -> None:
    Path("whole.yaml").write_text(jobs.show("neurips21/resnet50_95", [], resolved=True), encoding="utf-8")
    assert "extends" not in Path("whole.yaml").read_text(encoding="utf-8")
    assert load("whole.yaml") == load("neurips21/resnet50_95")


def test_overrides_show_the_recipe_resolved(in_tmp: Path) -> None:
    Path("whole.yaml").write_text(jobs.show("demo", ["epochs=18", "sparsity.warmup_epochs=4"], resolved=False))
    assert load("whole.yaml").epochs == 18


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if number % 5 == 0 else pytest.mark.slow)
        for number, name in enumerate(shipped.names())
    ],
)
def test_a_copy_elsewhere_is_the_same_recipe(in_tmp: Path, name: str) -> None:
    path = jobs.copy(name, None)
    assert path == Path(f"{name.rpartition('/')[2]}.yaml")
    assert load(path) == load(name)


def test_a_study_is_shown_and_copied_as_a_recipe_is(in_tmp: Path) -> None:
    done = recipes("copy", "studies/methods")
    assert "acdc sweep methods.yaml" in done.stderr
    assert load_study("methods.yaml").recipes() == load_study("methods").recipes()
    assert jobs.show("studies/methods", [], resolved=False) == Path("methods.yaml").read_text()
    with pytest.raises(RecipeError, match="is a study, which makes many recipes"):
        jobs.show("studies/methods", [], resolved=True)
    with pytest.raises(RecipeError, match="no study studies/method"):
        jobs.show("studies/method", [], resolved=False)


def test_copies_of_both_protocols_side_by_side_keep_apart(in_tmp: Path) -> None:
    jobs.copy("resnet50_90", None)
    path = jobs.copy("neurips21/resnet50_95", None)
    assert load(path).data.batch_size == 256


def test_copy_takes_a_folder_or_a_new_file_and_overwrites_none(in_tmp: Path) -> None:
    Path("mine").mkdir()
    assert recipes("copy", "demo", "mine").exit_code == 0
    assert Path("mine/demo.yaml").is_file()
    assert jobs.copy("recipes/demo.yaml", Path("mine/other.yaml")) == Path("mine/other.yaml")
    Path("mine/demo.yaml").write_text("edited")
    with pytest.raises(RecipeError, match=r"^mine/demo.yaml exists; "):
        jobs.copy("demo", Path("mine"))
    assert Path("mine/demo.yaml").read_text() == "edited"
    with pytest.raises(RecipeError, match=r"^nowhere/demo.yaml cannot be written"):
        jobs.copy("demo", Path("nowhere/demo.yaml"))


def test_copy_leaves_files_of_ones_own_alone(in_tmp: Path) -> None:
    jobs.copy("demo", Path("mine.yaml"))
    with pytest.raises(RecipeError, match=r"^mine.yaml is not a shipped recipe"):
        jobs.copy("mine.yaml", Path("yours.yaml"))


def test_an_unknown_name_reaches_the_error_boundary() -> None:
    assert isinstance(recipes("show", "resnet50_59").exception, RecipeError)
