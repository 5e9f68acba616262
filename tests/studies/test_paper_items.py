"""The list of the papers' tables and figures: every entry loads, plans, dry-runs and draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Acdc
from pydantic import ValidationError
from rich.cells import cell_len
from shipped_runs import recipes

from acdc_cli.jobs.run_plan import plan
from acdc_cli.recipe import shipped
from acdc_cli.recipe.discovery import ANALYSES
from acdc_cli.recipe.load import load
from acdc_cli.studies import paper_items as job
from acdc_cli.studies import study_plan
from acdc_cli.studies.paper_items import ItemBlock, paper_items
from acdc_cli.studies.study import load_study
from acdc_cli.studies.study_analyses import require_saved
from scripts import docs_hooks

ITEMS = paper_items()
ELSEWHERE = ("Table E.3",)
"""Transfer, which is a command of its own; docs/papers.md names it."""


def test_every_table_and_figure_is_listed_that_is_a_result_of_training() -> None:
    named = {(each.paper, each.item) for each in ITEMS}
    p1 = ("Figure 1", "Figure 2a", "Figure 2b", "Figure 3", "Table 1", "Table 2", "Table 3", "Table 4")
    p2 = (
        "Figure C.1", "Figure C.2", "Table D.2", "Figure F.4", "Table G.5", "Table H.6", "Table I.7", "Figure J.5",
        "Table K.8", "Figure L.6", "Table L.9", "Table L.10", "Section M", "Figure M.7", "Figure N.8", "Figure P.9",
    )  # fmt: skip
    assert named >= {*(("P1", item) for item in p1), *(("P2", item) for item in p2)}
    assert not named & {(paper, item) for paper in ("P1", "P2") for item in ELSEWHERE}
    missing = (Path(__file__).parents[2] / "docs/papers.md").read_text()
    assert all(item in missing for item in ELSEWHERE)


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: f"{item.paper} {item.item}")
def test_an_entry_loads_and_its_runs_save_what_it_draws(item: ItemBlock) -> None:
    if item.study is None:
        assert (item.recipe in shipped.names(), item.runs(), len(item.recipes())) == (True, 1, 1)
        assert all(name in ANALYSES.names() for name in item.draws)
        return
    study = load_study(item.study)
    assert item.study in shipped.study_names()
    assert shipped.description(shipped.find_study(item.study)).startswith(f"{item.paper}, ")
    assert set(item.draws) <= {"report", *study.analyses}
    assert item.runs() == len(item.first) + len(recipes(item.study))
    require_saved(study, recipes(item.study))


def test_runs_that_others_start_from_are_trained_first() -> None:
    for item in (each for each in ITEMS if each.study):
        started = {getattr(each.sparsity, "from_checkpoint", None) for each in recipes(str(item.study)).values()}
        names = [command.removeprefix("acdc train ").split(" --set ") for command in item.train[: len(item.first)]]
        trained = [load(name, overrides) for name, *overrides in names]
        assert started - {None} == {f"runs/{recipe.name}-{recipe.seed}" for recipe in trained}


def test_every_study_of_a_paper_is_in_the_list() -> None:
    papers = [
        name for name in shipped.study_names() if shipped.description(shipped.find_study(name))[:3] in ("P1,", "P2,")
    ]
    assert set(papers) == {item.study for item in ITEMS if item.study}


def test_every_analysis_of_their_studies_is_drawn_by_an_entry() -> None:
    drawn = {(item.study, name) for item in ITEMS for name in item.draws}
    assert {(item.study, name) for item in ITEMS if item.study for name in load_study(item.study).analyses} <= drawn


def test_the_list_fits_80_columns_and_names_commands(acdc: Acdc) -> None:
    result = acdc("recipes", "papers")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(cell_len, lines)) <= 80
    at = lines.index("P1 Table 1: ResNet-50 at 80 and 90 %, every method")
    assert lines[at + 1 : at + 5] == [
        "    acdc train neurips21/resnet50_dense", "    acdc sweep table1", "    acdc report table1", "    40 runs",
    ]  # fmt: skip
    listed = json.loads(acdc("recipes", "papers", "--json").stdout)
    assert listed == [item.as_dict() for item in ITEMS]
    assert set(listed[0]) == {"paper", "item", "shows", "train", "draw", "runs"}


def test_the_page_has_every_command_of_the_list() -> None:
    page = docs_hooks.on_page_markdown((Path(__file__).parents[2] / "docs/papers.md").read_text()).splitlines()
    for item in ITEMS:
        at = next(
            row for row, line in enumerate(page) if line.startswith(f"**{item.paper}, {item.item}**: {item.shows}")
        )
        assert page[at + 3 :][: len(item.train + item.draw)] == [*item.train, *item.draw]


def test_costs_are_those_of_acdc_plan(acdc: Acdc, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [item for item in ITEMS if item.item in ("Figure 1", "Figure 2b")]
    monkeypatch.setattr(job, "paper_items", lambda: few)
    curve, memorised = json.loads(acdc("recipes", "papers", "--cost", "--json").stdout)
    assert (curve["epochs"], memorised["epochs"]) == (100, 12 * 200)
    assert curve["train_flops"] == float(plan(load("neurips21/resnet50_90")).totals.train_flops)
    name = "neurips21/cifar10_resnet20_{}_corrupt_labels"
    one = sum(plan(load(name.format(target))).totals.train_flops for target in (50, 75, 90, 95))
    assert memorised["train_flops"] == pytest.approx(float(3 * one), rel=1e-12)
    few.pop()
    result = acdc("recipes", "papers", "--cost")
    assert f"    1 run, 100 epochs, {curve['train_flops'] / 1e18:.3g} EFLOPs" in result.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("study", sorted({item.study for item in ITEMS if item.study}))
def test_an_entry_plans(in_tmp: Path, study: str) -> None:
    planned = study_plan.sweep_plan(study)
    assert planned.warnings == []
    assert planned.total()["runs"] == len(recipes(study))


@pytest.mark.parametrize("trained", [{}, {"study": "table1", "recipe": "demo"}])
def test_an_entry_is_of_a_study_or_of_a_recipe(trained: dict[str, str]) -> None:
    entry = {"paper": "P1", "item": "Table 1", "shows": "x", "draws": ["report"], **trained}
    with pytest.raises(ValidationError, match="Table 1: needs a study or a recipe, not both"):
        ItemBlock.model_validate(entry)
