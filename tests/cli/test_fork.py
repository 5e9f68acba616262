"""`acdc train --fork`: a run that starts from the state of another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import Acdc, Finished, train_here
from safetensors import safe_open

from acdc_cli.runs.run_dir import RunDir
from acdc_cli.training import checkpoint

# dense 0, sparse 1, dense 2, sparse 3, dense 4, sparse 5
KEPT = ("--set", "checkpoint.keep_states=[5]")
DENSE_AT_THE_END = ("--set", "sparsity.last_phase=dense_last")


def records(run: str) -> list[dict[str, Any]]:
    timed = ("seconds", "images_per_second")
    return [{key: value for key, value in r.items() if key not in timed} for r in RunDir(Path(run)).records()]


def weights(file: Path) -> dict[str, list[float]]:
    with safe_open(file, framework="np") as tensors:
        return {name: tensors.get_tensor(name).ravel().tolist() for name in tensors.keys()}  # noqa: SIM118


@pytest.fixture
def source(finished_with_state: Finished) -> Path:
    finished_with_state()
    return Path("runs/small-0")


def test_a_fork_equals_an_undisturbed_run_of_its_schedule_to_the_bit(acdc: Acdc, recipe: Path, source: Path) -> None:
    forked = acdc("train", "--fork", f"{source}@5", *DENSE_AT_THE_END)
    assert forked.exit_code == 0, forked.output
    assert "after 5 of 6 epochs" in forked.stderr
    whole = acdc("train", recipe, *KEPT, *DENSE_AT_THE_END, "--out", "runs/whole")
    assert whole.exit_code == 0, whole.output
    fork = "runs/small-after-5-0"
    assert records(fork) == records("runs/whole")
    assert [record["phase"] for record in records(fork)] == ["dense", "sparse", "dense", "sparse", "dense", "dense"]
    for kind in ("sparse", "dense"):
        assert weights(Path(fork, f"{kind}.safetensors")) == weights(Path("runs/whole", f"{kind}.safetensors")), kind
    # the source trained its sparse model further
    assert weights(Path(fork, "sparse.safetensors")) != weights(source / "sparse.safetensors")
    assert [kept.epoch for kept in RunDir(Path(fork)).kept_masks()] == [1, 3]
    ended = json.loads(Path(fork, "summary.json").read_text())
    undisturbed = json.loads(Path("runs/whole/summary.json").read_text())
    assert ended["cost"] == undisturbed["cost"]
    assert ended["fork"] == {
        "run": str(source.resolve()),
        "epochs": 5,
        "train_flops": records(fork)[4]["train_flops"],
        "changed": {"sparsity.last_phase": ["sparse", "dense_last"]},
    }
    (entry,) = RunDir(Path(fork)).provenance()
    assert entry["fork"]["source"] == RunDir(source).provenance()


def test_a_fork_has_the_weight_decay_and_the_momentum_of_its_own_recipe(acdc: Acdc, source: Path) -> None:
    words = ("--set", "optim.weight_decay=0.25", "--set", "optim.momentum=0.5", "--out", "runs/decayed")
    assert acdc("train", "--fork", f"{source}@5", *words).exit_code == 0
    state = checkpoint.load_state(RunDir(Path("runs/decayed")).checkpoints)
    assert state is not None
    groups = state["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.25, 0.0}
    assert {group["momentum"] for group in groups} == {0.5}
    assert acdc("train", "--fork", f"{source}@5", "--out", "runs/plain").exit_code == 0
    assert records("runs/decayed")[5]["train_loss"] != records("runs/plain")[5]["train_loss"]


def test_a_fork_that_was_interrupted_resumes_without_its_source(acdc: Acdc, source: Path) -> None:
    assert acdc("train", "--fork", f"{source}@5").exit_code == 0
    fork = RunDir(Path("runs/small-after-5-0"))
    fork.summary.unlink()
    end = records(str(fork.path))[-1]
    # as after its start: its checkpoint is that of the fork
    shutil.copy(fork.checkpoints / "previous.pt", fork.checkpoints / "last.pt")
    source.rename("elsewhere")
    resumed = acdc("train", fork.path, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert records(str(fork.path))[-1] == end == records("elsewhere")[-1]


@pytest.mark.slow
def test_a_fork_that_died_while_it_was_prepared_is_prepared_again(acdc: Acdc, source: Path) -> None:
    assert acdc("train", "--fork", f"{source}@5").exit_code == 0
    fork = RunDir(Path("runs/small-after-5-0"))
    before = records(str(fork.path))
    for file in (fork.summary, fork.metrics, *fork.models(), *fork.checkpoints.glob("*.pt")):
        file.unlink()
    resumed = acdc("train", fork.path, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert records(str(fork.path)) == before


@pytest.mark.parametrize(
    ("at", "words", "told"),
    [
        ("@4", [], "kept no state after 4 epochs; it kept runs/small-0@5. Train it with checkpoint.keep_states=[4]"),
        ("", [], "expected RUN@EPOCHS, such as runs/resnet50_95-0@85"),
        ("@5", ["epochs=4", "checkpoint.keep_states=[]"], "nothing is left to train of 4 epochs"),
        ("@5", ["model.name=resnet20"], "model.name: resnet8 in runs/small-0, resnet20 here; a fork has the model"),
        (
            "@5",
            ["sparsity.keep_dense=[first]"],
            "sparsity.keep_dense: ['first', 'last'] in runs/small-0, ['first'] here",
        ),
        ("@5", ["optim.momentum=0"], "optim.momentum: 0.9 in runs/small-0, 0.0 here"),
        ("@5", ["ema.decay=0.9"], "a fork has the model, the optimiser and the method of its source"),
        (
            "@5",
            ["sparsity.warmup_epochs=2", "epochs=7"],
            "was sparse, but this recipe makes it dense; change only what",
        ),
    ],
)
def test_what_cannot_be_forked_is_refused_and_leaves_no_run(
    at: str, words: list[str], told: str, acdc: Acdc, source: Path
) -> None:
    changes = [word for each in words for word in ("--set", each)]
    result = acdc("train", "--fork", f"{source}{at}", *changes)
    assert result.exit_code == 2, result.output
    assert told in " ".join(result.stderr.split())
    assert [run.name for run in Path("runs").iterdir()] == ["small-0"]


def test_a_fork_has_the_images_of_its_source(acdc: Acdc, source: Path, digits: Path) -> None:
    Path("swapped").mkdir()
    for ours, theirs in (("train", "val"), ("val", "train")):
        for suffix in (".beton", ".beton.json"):
            shutil.copy(digits / f"{ours}{suffix}", f"swapped/{theirs}{suffix}")
    result = acdc("train", "--fork", f"{source}@5", "--set", "data.path=swapped")
    assert result.exit_code == 2
    assert f"the images are not those that {source} was trained on; set data.path to those" in result.stderr


def test_a_recipe_or_a_run_to_fork_is_needed(acdc: Acdc) -> None:
    result = acdc("train")
    assert result.exit_code == 2
    assert "name a recipe, or a run with --fork" in result.stderr


STUDY = """\
name: pair
base: small.yaml
set: {checkpoint.keep_states: [5], track.wandb: disabled}
axes:
  model:
    - {label: finetuned, set: {sparsity.last_phase: dense_last}}
    - {label: sparse, set: {}}
  seed: [1]
fork:
  - {where: {model: finetuned}, run: {model: sparse}, after: 5}
"""


def test_a_study_trains_the_run_before_its_fork_and_pays_its_epochs_once(
    acdc: Acdc, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = train_here(monkeypatch)
    Path("pair.yaml").write_text(STUDY)
    planned = json.loads(acdc("sweep", "pair.yaml", "--dry-run", "--json").stdout)
    fork, source = planned["runs"]
    assert (fork["epochs"], source["epochs"], planned["totals"]["all"]["epochs"]) == (1, 6, 7)
    # one dense epoch; the other runs' ratios count all six
    assert fork["train_ratio"] == pytest.approx(1 / 6)
    result = acdc("sweep", "pair.yaml", "--workers", "1")
    assert result.exit_code == 0, result.output
    assert started == ["model=sparse,seed=1", "model=finetuned,seed=1"]
    whole = acdc("train", recipe, *DENSE_AT_THE_END, "--set", "seed=1", "--out", "runs/whole")
    assert whole.exit_code == 0, whole.output
    assert records("studies/pair/runs/model=finetuned,seed=1") == records("runs/whole")
    # moved as a whole it is still the same study
    Path("studies").rename("moved")
    again = acdc("sweep", "pair.yaml", "--out", "moved/pair")
    assert again.exit_code == 0, again.output
    assert len(started) == 2


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("after: 5", "after: 4", "model=sparse,seed=1 keeps no state after 4 epochs; set checkpoint.keep_states there"),
        (
            "[5]",
            "[6]",
            "checkpoint.keep_states: 6: expected lengths between the start and the end of the run's 6 epochs",
        ),
        ("run: {model: sparse}", "run: {model: gmp}", 'fork[0].run.model: expected finetuned or sparse, found "gmp"'),
        (
            "where: {model: finetuned}",
            "where: {seed: 1}",
            "model=sparse,seed=1: model=sparse,seed=1 is itself a fork after 5 epochs; fork it later",
        ),
        (
            "after: 5}",
            "after: 5}\n  - {where: {seed: 1, model: finetuned}, run: {model: sparse}, after: 5}",
            "model=finetuned,seed=1: it would fork several runs",
        ),
        (
            "fork:",
            "exclude: [{model: sparse}]\nfork:",
            "would fork model=sparse,seed=1, which is not a run of the study",
        ),
    ],
)
def test_a_study_whose_runs_cannot_be_forked_is_refused_before_anything_runs(
    old: str, new: str, told: str, acdc: Acdc, recipe: Path
) -> None:
    Path("pair.yaml").write_text(STUDY.replace(old, new))
    result = acdc("sweep", "pair.yaml")
    assert result.exit_code == 2, result.output
    assert told in " ".join(result.stderr.split())
    assert not Path("studies").exists()


def test_a_run_can_end_in_both_models(acdc: Acdc, recipe: Path, finished: Finished) -> None:
    finished("runs/alone")
    words = ("--set", "sparsity.last_phase=both", "--set", "epochs=7", "--out", "runs/both")
    result = acdc("train", recipe, *words)
    assert result.exit_code == 0, result.output
    assert records("runs/both")[:6] == records("runs/alone")
    *_, sparse, dense = records("runs/both")
    assert (sparse["phase"], dense["phase"]) == ("sparse", "dense")
    assert (dense["lr"], dense["resolution"]) == (sparse["lr"], sparse["resolution"])
    assert weights(Path("runs/both/sparse.safetensors")) == weights(Path("runs/alone/sparse.safetensors"))
    ended = json.loads(Path("runs/both/summary.json").read_text())
    assert (ended["sparse"]["epoch"], ended["dense"]["epoch"]) == (5, 6)
    assert 0 < ended["dense"]["top1"] <= 1
    assert weights(Path("runs/both/dense.safetensors")) != weights(Path("runs/alone/dense.safetensors"))
    assert "sparse: top-1" in result.stderr
    assert "dense: top-1" in result.stderr
