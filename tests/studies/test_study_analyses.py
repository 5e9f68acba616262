"""A study that names its analyses: what is refused before it trains, and what `acdc analyze --study` runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command import Acdc
from mini_trainer import FewImages, MiniRun

from acdc_cli.analysis.base.forecast import Forecast
from acdc_cli.errors import RecipeError, RunError
from acdc_cli.recipe.blocks.run import CheckpointBlock
from acdc_cli.studies.run_study import _conclude
from acdc_cli.studies.study import load_study
from acdc_cli.studies.study_analyses import analyze_study, require_saved
from acdc_cli.studies.study_plan import sweep_plan

# dense 0, sparse 1-2, dense 3-4, sparse 5-7
HEAD = """name: foo
base: demo
set: {epochs: 8, sparsity.warmup_epochs: 1, sparsity.sparse_epochs: 2, sparsity.dense_epochs: 1,
      sparsity.last_dense_epochs: 2, sparsity.last_sparse_epochs: 3}
axes: {method: [{label: acdc, set: {}}, {label: gmp, set: {sparsity.method: gmp}},
                {label: dense, set: {sparsity.method: dense}}], seed: [0, 1]}
analyses: """


def check(analyses: str) -> None:
    Path("foo.yaml").write_text(HEAD + analyses + "\n")
    study = load_study("foo.yaml")
    require_saved(study, study.recipes())


@pytest.mark.parametrize(
    ("analyses", "told"),
    [
        ("{masks: {runs: [{where: {method: dense}}]}}", ["analyses.masks: method=dense,seed=0: an overlap needs two"]),
        ("{masks: {runs: [{where: {method: [acdc, gmp]}}], set: {common: true}}}", ["seed=0: an overlap", "1 remain"]),
        ("{m: {analysis: masks, runs: [{where: {method: acdc}}], set: {models: true}}}", ["analyses.m: ", "every=N"]),
        ("{sharpness: {set: {along: true}}}", ["analyses.sharpness: method=acdc,seed=0: no checkpoints of earlier"]),
        ("{interpolate: {runs: [{where: {method: acdc, seed: 0}}]}}", ["no checkpoints were saved, and a path needs"]),
        ("{memorisation: {}}", ["method=acdc,seed=0 has no corrupted labels; train with"]),
        ("{decompression: {}}", ["method=gmp,seed=0: no dense phase has followed"]),
        ("{agreement: {runs: [{where: {method: dense, seed: 1}}]}}", ["method=dense,seed=1 ends in one model"]),
        ("{channels: {runs: [{file: checkpoints/epoch-0001-*}]}}", ["seed=0 will not save checkpoints/epoch-0001-*"]),
        ("{channels: {runs: [{where: {method: gmp}, file: dense.safetensors}]}}", ["will not save dense.safetensors"]),
        ("{sharpness: {set: {image: 10}}}", ["image: unknown key; did you mean images?"]),
        ("{sharp: {}}", ["7: analyses.sharp.analysis: expected agreement, ", 'found "sharp"; did you mean sharpness?']),
        ("{masks: {runs: [{where: {methods: acdc}}]}}", ["methods is not an axis; did you mean method?"]),
        ("{masks: {runs: [{where: {method: [acdc, set]}}]}}", ["expected acdc, gmp or dense, found \"set\""]),
        ("{masks: {runs: []}}", ["7: analyses.masks.runs: expected a list of blocks with the keys where, file"]),
        ("{masks: {runs: [{where: {seed: {}}}]}}", ["where.seed: expected a value of the axis, or a list of values"]),
        ("{masks: {runs: [{where: {method: acdc, seed: 1}}]}}\nexclude: [{seed: 1}]", ["no run of the study has"]),
    ],
)  # fmt: skip
def test_what_runs_would_not_save_is_told_before_anything_runs(in_tmp: Path, analyses: str, told: list[str]) -> None:
    with pytest.raises(RecipeError) as error:
        check(analyses)
    assert all(each in str(error.value) for each in told), str(error.value)


def test_sweep_and_its_dry_run_refuse_the_study(in_tmp: Path, acdc: Acdc) -> None:
    Path("foo.yaml").write_text(HEAD + "{sharpness: {set: {along: true}}}\n")
    with pytest.raises(RecipeError, match=r"analyses\.sharpness: .*keep_phases=true"):
        sweep_plan("foo.yaml")
    result = acdc("sweep", "foo.yaml")
    assert (result.exit_code, "analyses.sharpness: " in result.stderr) == (2, True)
    assert not Path("studies").exists()


@pytest.mark.parametrize(
    "analyses",
    [
        "{masks: {runs: [{where: {method: acdc}}]}}",
        "{masks: {runs: [{where: {method: [acdc, gmp]}}], set: {common: true}}}\n"
        "adjust: [{where: {method: gmp}, set: {checkpoint.keep_masks_every: 1}}]",
        "{m: {analysis: masks, set: {models: true}}}\n"
        "adjust: [{where: {seed: 0}, set: {checkpoint.keep_every: 4}},"
        " {where: {seed: 1}, set: {checkpoint.keep_every: 2}}]",
        "{channels: {runs: [{file: '*.safetensors'}]}}",
        "{sharpness: {}, decompression: {runs: [{where: {method: acdc}}]},"
        " agreement: {runs: [{where: {method: acdc}}]}}",
    ],
)  # fmt: skip
def test_what_suffices_is_not_refused(in_tmp: Path, analyses: str) -> None:
    check(analyses)


ACDC = {"method": "acdc", "target": 0.9, "warmup_epochs": 2, "sparse_epochs": 2, "dense_epochs": 1,
        "last_dense_epochs": 1, "last_sparse_epochs": 2}  # fmt: skip
GMP = {"method": "gmp", "target": 0.9, "every_epochs": 1}
RIGL = {"method": "rigl", "target": 0.9, "distribution": "erk", "every": 2}


@pytest.mark.parametrize("method", [ACDC, GMP, RIGL, {"method": "dense"}], ids=lambda method: str(method["method"]))
@pytest.mark.parametrize(
    "checkpoint", [{}, {"keep_phases": True}, {"keep_every": 3}, {"keep_every": 2, "keep_masks_every": 3}]
)
def test_a_run_saves_the_files_that_its_forecast_names(
    tmp_path: Path, method: dict[str, Any], checkpoint: dict[str, Any]
) -> None:
    run = MiniRun(tmp_path / "run", 7, method, checkpoint=checkpoint, train=FewImages(4), val=FewImages(4))
    run.fit()
    recipe: Any = SimpleNamespace(checkpoint=CheckpointBlock(**checkpoint), forked_after=0)
    forecast = Forecast("run", recipe, lambda: run.sparsifier.phases)
    folder = run.directory.path
    assert [folder / each.file for each in forecast.masks] == [each.file for each in run.directory.kept_masks()]
    assert [folder / each.file for each in forecast.models] == [each.file for each in run.directory.kept_models()]
    assert {folder / each for each in forecast.results} == {*folder.glob("*.safetensors")}


@pytest.fixture(scope="module")
def few_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained study of one run whose masks and models are kept every three epochs."""
    from digits import image_folders

    from acdc_cli.jobs.training_run import train

    home = tmp_path_factory.mktemp("study")
    data = image_folders(home, shrink=6)
    (home / "foo.yaml").write_text(
        f"""name: foo
base: demo
set: {{epochs: 6, sparsity.warmup_epochs: 1, sparsity.sparse_epochs: 1, sparsity.dense_epochs: 1,
      sparsity.last_dense_epochs: 1, sparsity.last_sparse_epochs: 1, checkpoint.keep_every: 3,
      data.name: folder, data.path: {data}, data.batch_size: 50, data.loader: torch, optim.schedule.warmup_epochs: 0,
      data.workers: 0, data.resolution: 7, data.val_resize: 7, data.val_crop: 7}}
axes: {{seed: [0]}}
analyses:
  masks: {{set: {{since: 1}}}}
  every: {{analysis: masks, runs: [{{file: "checkpoints/epoch-000?-*.safetensors"}}]}}
"""
    )
    study = load_study(home / "foo.yaml")
    (cell,) = study.cells()
    train(str(study.base_recipe), cell.overrides, out=home / "studies/foo/runs" / cell.key)
    return home


def test_analyze_runs_what_the_study_names(few_runs: Path, acdc: Acdc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(few_runs)
    result = acdc("analyze", "masks", "--study", "foo.yaml", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["options"]["since"] == 1
    assert [subject["name"] for subject in document["subjects"]] == ["seed=0"]
    assert Path("studies/foo/analysis/masks/masks.png").is_file()
    analysed = analyze_study("every", "foo.yaml")
    assert [Path(subject["source"]).name for subject in analysed.document["subjects"]] == [
        "epoch-0002-dense.safetensors", "epoch-0005-sparse.safetensors",
    ]  # fmt: skip
    assert acdc("analyze", "masks", "studies/foo", "--study", "foo.yaml").exit_code == 2


def test_analyses_of_others_and_of_untrained_runs_are_refused(few_runs: Path, in_tmp: Path) -> None:
    with pytest.raises(RunError, match="the study foo has no analysis mask; it names masks, every; did you mean masks"):
        analyze_study("mask", str(few_runs / "foo.yaml"))
    with pytest.raises(RunError, match="seed=0: not there yet; train the study first: acdc sweep foo"):
        analyze_study("masks", str(few_runs / "foo.yaml"))


def test_a_sweep_that_is_done_names_the_report_and_the_studys_analyses(capsys: pytest.CaptureFixture[str]) -> None:
    _conclude([], load_study("memorisation"), "memorisation", Path("studies/memorisation"), stopped=False)
    said = " ".join(capsys.readouterr().err.split())
    assert "next: acdc report studies/memorisation · acdc analyze memorisation --study studies/memorisation" in said
