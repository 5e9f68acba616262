"""The drawing command of every entry of the papers' list, on runs that have saved what the entry's own recipes say.

The runs are as long as the papers' and have the files that the recipes' checkpoint keys give (tests/studies holds
forecasts against real runs), but their weights, masks and numbers are those of one little run, over and over.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command import Acdc

from acdc_cli.analysis.base.forecast import Forecast
from acdc_cli.data.data_set import expected_set
from acdc_cli.jobs import setup
from acdc_cli.recipe.kinds import measures_of
from acdc_cli.recipe.load import load, resolved_yaml
from acdc_cli.recipe.schema import Recipe
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.schedule.time import PhasePlan
from acdc_cli.sparsity.prunable import layers
from acdc_cli.studies.paper_items import ItemBlock, paper_items
from acdc_cli.studies.run_queue import RunQueue
from acdc_cli.studies.study import load_study

ITEMS = paper_items()
HERE = ("device=cpu", "precision=fp32")
SMALL = (
    *HERE, "model.name=resnet8", "model.options={}", "model.blurpool=false", "data.name=folder",
    "data.val_batch_size=50", "data.val_resize=7", "data.val_crop=7", "data.resolution=7", "data.loader=torch",
    "data.val_images=40",
)  # fmt: skip
"""What turns a recipe of the papers into one of the little run's model and images; that of a text is only reported."""
QUICK = {
    "sharpness": ("images=20", "trace_samples=0", "iterations=2"),
    "interpolate": ("points=1", "images=20", "bn_images=20"),
    "corruptions": ("corruptions=[fog]", "workers=0"),
}


def phases(recipe: Recipe) -> PhasePlan:
    classes, *_ = expected_set(recipe.data)
    model = setup.without_weights(recipe, classes)
    return setup.sparsifier(recipe, layers(model, setup.keep_dense(recipe))).phases


class Runs:
    """Run directories of any recipe, without its training."""

    def __init__(self, trained: Path, data: Path) -> None:
        self._trained, self._data = RunDir(trained), data
        # the last of each kind
        self._records = {record["phase"]: record for record in self._trained.records()}

    def make(self, source: str | Path, overrides: tuple[str, ...], folder: Path) -> None:
        forecast = Forecast("", load(source, overrides), partial(phases, load(source, overrides)))
        for part in ("masks", "checkpoints"):
            (folder / part).mkdir(parents=True)
        of_images = forecast.recipe.data.inputs == "images"
        small = load(source, [*overrides, *(SMALL if of_images else HERE), f"data.path={self._data}"])
        (folder / "resolved.yaml").write_text(resolved_yaml(small))
        for name in ("provenance.json", "summary.json"):
            shutil.copy(self._trained.path / name, folder)
        for kept in forecast.masks:
            shutil.copy(self._trained.kept_masks()[kept.epoch % 2].file, folder / kept.file)
        for file in [*forecast.results, *(kept.file for kept in forecast.models)]:
            shutil.copy(self._trained.model_file("dense" if "dense" in file.name else "sparse"), folder / file)
        records = (self._record(forecast, epoch) for epoch in range(small.epochs))
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))

    def _record(self, forecast: Forecast, epoch: int) -> dict[str, Any]:
        kind = forecast.phases.at(epoch).kind
        wrong = {} if getattr(forecast.recipe.data, "corrupt_labels", None) is None else dict.fromkeys(
            ("corrupted_true", "corrupted_given", "corrupted_neither"), 1 / 3
        )  # fmt: skip
        record = self._records["dense" if kind == "dense" else "sparse"]
        # what other tasks measure, too
        measured = measures_of(forecast.recipe.task.name).all
        record = dict.fromkeys((quantity.key for quantity in measured), 0.5) | record
        return record | wrong | {"epoch": epoch, "step": 4 * (epoch + 1), "phase": kind}


@pytest.fixture
def runs(trained: Path, few_digits: Path) -> Runs:
    return Runs(trained, few_digits)


def make(item: ItemBlock, runs: Runs) -> None:
    """The runs that the entry's commands train, where they put them."""
    if item.recipe is not None:
        recipe = load(item.recipe)
        runs.make(item.recipe, (), Path("runs") / f"{recipe.name}-{recipe.seed}")
        return
    study = load_study(str(item.study))
    folder = Path("studies") / study.name
    for cell in study.cells():
        runs.make(study.base_recipe, cell.overrides, folder / "runs" / cell.key)
    RunQueue(folder / "ledger.sqlite").add(study.cells())


def draw(item: ItemBlock, acdc: Acdc) -> list[Path]:
    """Runs the entry's drawing commands; the figures."""
    analyses = load_study(item.study).analyses if item.study else {}
    for name, command in zip(item.draws, item.draw, strict=True):
        of = (analyses[name].analysis or name) if name in analyses else name
        result = acdc(*command.split()[1:], *(word for option in QUICK.get(of, ()) for word in ("--set", option)))
        assert result.exit_code == 0, f"{command}: {result.output}"
    return [*Path().rglob("*.png")]


@pytest.mark.parametrize(
    "item", [item for item in ITEMS if item.item in ("Figure 2a", "Figure L.6")], ids=lambda item: item.item
)
def test_an_entry_draws_its_figure(item: ItemBlock, runs: Runs, in_tmp: Path, acdc: Acdc) -> None:
    make(item, runs)
    assert draw(item, acdc)


@pytest.mark.slow
@pytest.mark.parametrize("source", dict.fromkeys(str(item.study or item.recipe) for item in ITEMS))
def test_every_entry_draws_its_figure(source: str, runs: Runs, in_tmp: Path, acdc: Acdc) -> None:
    items = [item for item in ITEMS if source in (item.study, item.recipe)]
    make(items[0], runs)
    for item in items:
        figures = draw(item, acdc)
        folders = {png.parent for png in figures}
        assert len(folders) >= (len(item.draws) if item.study else 1)
