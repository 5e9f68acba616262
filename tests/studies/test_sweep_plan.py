"""`acdc sweep --dry-run`: what a study's runs cost, what is done and what remains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Acdc
from rich.cells import cell_len

from acdc_cli.errors import RecipeError
from acdc_cli.jobs.run_plan import plan
from acdc_cli.recipe import shipped
from acdc_cli.recipe.load import load
from acdc_cli.studies import study_plan as job
from acdc_cli.studies.grid import Cell
from acdc_cli.studies.owner import Owner
from acdc_cli.studies.run_queue import RunQueue
from acdc_cli.studies.study import load_study
from acdc_cli.studies.study_plan import SweepPlan, require_budget, run_columns, sweep_plan

SHORT = (
    "set: {sparsity.warmup_epochs: 1, sparsity.sparse_epochs: 1, sparsity.dense_epochs: 1, "
    "sparsity.last_dense_epochs: 25%, sparsity.last_sparse_epochs: 25%}\n"
)
AXES = "axes: {sparsity: [dense, 0.9], epochs: {values: [4, 8], until_converged: true}, seed: [0, 1]}\n"


@pytest.fixture
def study(in_tmp: Path) -> Path:
    """Eight runs of 48 epochs together."""
    path = in_tmp / "foo.yaml"
    path.write_text(f"name: foo\nbase: demo\n{SHORT}{AXES}budget: {{epochs: 100}}\n")
    return path


def states(plan: SweepPlan) -> dict[str, str]:
    return {run.key: run.state for run in plan.runs}


def test_every_run_is_priced_as_acdc_plan_does(study: Path) -> None:
    priced = sweep_plan("foo.yaml")
    assert [run.key for run in priced.runs] == [cell.key for cell in load_study("foo.yaml").cells()]
    for run in priced.runs:
        totals = plan(load("demo", run.overrides)).totals
        assert (run.train_flops, run.train_ratio) == (totals.train_flops, totals.train_ratio)
        assert run.epochs == run.axes["epochs"]
    assert {run.train_ratio for run in priced.runs if run.axes["sparsity"] == "dense"} == {1.0}
    total = priced.total()
    assert total == {"runs": 8, "epochs": 48, "train_flops": sum(run.train_flops for run in priced.runs)}
    assert priced.warnings == []


def test_runs_that_differ_in_their_seed_are_priced_once(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    priced: list[int] = []
    monkeypatch.setattr(job, "plan", lambda recipe: (priced.append(recipe.epochs), plan(recipe))[1])
    assert len(sweep_plan("foo.yaml").runs) == 8
    assert sorted(priced) == [4, 4, 8, 8]


def test_without_a_ledger_the_run_directories_tell_what_is_done(study: Path) -> None:
    runs = study.parent / "studies/foo/runs"
    for key, file in (
        ("sparsity=dense,epochs=4,seed=0", "summary.json"),
        ("sparsity=0.9,epochs=8,seed=1", "resolved.yaml"),
    ):
        (runs / key).mkdir(parents=True)
        (runs / key / file).write_text("{}")
    plan = sweep_plan("foo.yaml")
    told = states(plan)
    assert told.pop("sparsity=dense,epochs=4,seed=0") == "done"
    assert told.pop("sparsity=0.9,epochs=8,seed=1") == "begun"
    assert set(told.values()) == {"waiting"}
    assert (plan.total(done=True)["runs"], plan.total(done=False)["epochs"]) == (1, 44)
    assert not (study.parent / "studies/foo/ledger.sqlite").exists()
    assert set(states(sweep_plan("foo.yaml", Path("elsewhere"))).values()) == {"waiting"}


def test_a_ledger_tells_what_runs_what_has_failed_and_what_was_added(study: Path) -> None:
    folder = study.parent / "studies/foo"
    folder.mkdir(parents=True)
    queue, owner = RunQueue(folder / "ledger.sqlite"), Owner.this_process()
    longer = Cell("sparsity=0.9,epochs=16,seed=0", {"sparsity": 0.9, "epochs": 16, "seed": 0}, ())
    dropped = Cell("sparsity=0.8,epochs=4,seed=0", {"sparsity": 0.8, "epochs": 4, "seed": 0}, ())
    cells = load_study("foo.yaml").cells()
    queue.add([*cells, longer, dropped])
    while queue.rows()[0].state != "failed":
        claimed = queue.claim(owner)
        assert claimed is not None
        if claimed.key == cells[0].key:
            queue.fail(claimed.key, owner, "boom")
    plan = sweep_plan("foo.yaml")
    told = states(plan)
    assert list(told) == [*(cell.key for cell in cells), longer.key]
    assert [told.pop(cells[0].key), *set(told.values())] == ["failed", "running"]
    assert plan.total() | {"train_flops": 0} == {"runs": 9, "epochs": 64, "train_flops": 0}


def test_a_budget_that_is_too_small_is_told_and_refused(study: Path) -> None:
    study.write_text(study.read_text().replace("{epochs: 100}", "{runs: 7, epochs: 48, train_flops: 1e9}"))
    plan = sweep_plan("foo.yaml")
    runs, flops = plan.warnings
    assert runs == "budget.runs: the study's runs need 8, more than 7; raise the limit or remove runs"
    taken = f"{plan.total()['train_flops']:.6g}"
    assert (
        flops == f"budget.train_flops: the study's runs need {taken}, more than 1e+09; raise the limit or remove runs"
    )
    read = load_study("foo.yaml")
    with pytest.raises(RecipeError) as error:
        require_budget(read, read.recipes().values())
    assert str(error.value).splitlines() == plan.warnings
    study.write_text(study.read_text().replace("{runs: 7, epochs: 48, train_flops: 1e9}", "{runs: 8, epochs: 48}"))
    read = load_study("foo.yaml")
    require_budget(read, read.recipes().values())
    assert sweep_plan("foo.yaml").warnings == []


def test_what_acdc_plan_doubts_is_told_with_its_runs(study: Path, acdc: Acdc) -> None:
    study.write_text(study.read_text().replace("set: {", "set: {data.batch_size: 32, optim.lr_batch: 64, "))
    (warning,) = sweep_plan("foo.yaml").warnings
    assert warning.startswith("sparsity=dense,epochs=4,seed=0 and 7 more: ")
    assert "batch" in warning
    assert f"warning: {warning}" in " ".join(acdc("sweep", "foo.yaml", "--dry-run").stderr.split())


def test_json_has_every_run_and_the_totals(study: Path, acdc: Acdc) -> None:
    result = acdc("sweep", study, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["study"], document["folder"], document["budget"]) == ("foo", "studies/foo", {"epochs": 100})
    assert (document["until_converged"], document["warnings"]) == (True, [])
    assert set(document["runs"][0]) == {"key", "axes", "overrides", "state", "epochs", "train_flops", "train_ratio"}
    assert document["totals"]["remaining"] == document["totals"]["all"]
    assert document["totals"]["done"] == {"runs": 0, "epochs": 0, "train_flops": 0}
    assert not (study.parent / "studies").exists()
    assert acdc("sweep", study, "--json").exit_code == 2


def test_the_table_has_a_line_a_run_and_what_they_take_together(study: Path, acdc: Acdc) -> None:
    result = acdc("sweep", study, "--dry-run")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["sparsity", "epochs", "seed", "state", "TFLOPs", "of", "dense"] in lines
    dense = plan(load("demo_dense", ["epochs=4"])).totals.train_flops
    assert ["dense", "4", "0", "waiting", f"{dense / 1e12:.3f}", "1.000"] in lines
    assert sum("waiting" in line for line in lines) == 8
    assert [line[:3] for line in lines[-4:]] == [
        ["done", "0", "0"], ["remaining", "8", "48"], ["all", "8", "48"], ["budget", "-", "100"],
    ]  # fmt: skip
    assert "longer runs are added" in result.stderr


@pytest.mark.parametrize(
    "name",
    [
        "memorisation",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "epoch_length_demo",
                "decompression_sparsity",
                "weight_decay",
                "patterns",
                "table1",
                "table2",
                "table3",
                "figure3",
                "section4",
                "pairs",
                "cifar100",
            )
        ),
    ],
)
def test_a_shipped_study_is_planned_without_doubt_in_80_columns(in_tmp: Path, acdc: Acdc, name: str) -> None:
    result = acdc("sweep", name, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "warning" not in result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) > len(load_study(name).cells())
    assert max(map(cell_len, lines)) <= 80
    assert name in shipped.study_names()


def test_columns_are_called_by_the_ends_of_their_keys_unless_two_end_alike(in_tmp: Path) -> None:
    Path("foo.yaml").write_text(
        "name: foo\nbase: demo_dense\naxes: {optim.lr: [0.1], optim.momentum: [0.5], seed: [0], epochs: [4]}\n"
    )
    assert run_columns(sweep_plan("foo.yaml")) == ["lr", "momentum", "seed", "epochs", "state", "GFLOPs", "of dense"]
    Path("foo.yaml").write_text("name: foo\nbase: demo_dense\naxes: {model.name: [resnet8], optim.name: [sgd]}\n")
    columns = run_columns(sweep_plan("foo.yaml"))
    assert columns == ["model.name", "optim.name", "state", "epochs", "TFLOPs", "of dense"]
