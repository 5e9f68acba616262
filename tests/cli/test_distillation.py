"""`task.teacher`: runs on real digits taught by another run, by a stranger's file, and by themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Acdc, Finished
from torch import Tensor

from acdc_cli.jobs import teaching
from acdc_cli.models.tensors import load_tensors
from acdc_cli.models.weights import plain_state_dict
from acdc_cli.runs.run_dir import RunDir

ONE_EPOCH = ("--set", "epochs=1", "--set", "sparsity={method: dense}")


@pytest.fixture
def pair(finished: Finished) -> Path:
    """A run with a sparse and a dense model."""
    finished()
    return Path("runs/small-0").rename("runs/pair")


@pytest.fixture
def teachers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every teacher that is built, as a list that grows."""
    built: list[Any] = []
    original = teaching.teacher

    def noted(*arguments: Any) -> Any:
        built.append(original(*arguments))
        return built[-1]

    monkeypatch.setattr(teaching, "teacher", noted)
    return built


def weights(file: Path) -> dict[str, Tensor]:
    return load_tensors(file)[0]


def test_a_runs_dense_model_teaches_and_the_plan_foretells_the_cost(
    acdc: Acdc, recipe: Path, pair: Path, teachers: list[Any]
) -> None:
    taught = acdc("train", recipe, "--set", "task.teacher=runs/pair", "--out", "runs/taught")
    assert taught.exit_code == 0, taught.output
    assert "taught by runs/pair, weight 0.9, temperature 4" in taught.stderr
    (teacher,) = teachers
    stored = weights(pair / "dense.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in plain_state_dict(teacher.model).items())
    entry = RunDir(Path("runs/taught")).last_start()["teacher"]
    assert entry == {"source": "runs/pair", "sha256": teacher.digest}
    plan = json.loads(acdc("plan", recipe, "--set", "task.teacher=runs/pair", "--json").stdout)
    cost = json.loads(Path("runs/taught/summary.json").read_text())["cost"]
    assert cost["nominal"]["train_flops"] == plan["totals"]["train_flops"]
    # six epochs of 200 images, each of which passes through the dense teacher once
    plain = json.loads(acdc("plan", recipe, "--json").stdout)["totals"]
    assert plan["totals"]["train_flops"] - plain["train_flops"] == 6 * 200 * cost["dense"]["inference_flops"]
    assert plan["memory"]["teacher"] == plan["memory"]["weights"]


def test_a_sparse_teacher_costs_what_its_nonzero_weights_do(acdc: Acdc, recipe: Path, pair: Path) -> None:
    plain, taught = (
        json.loads(acdc("plan", recipe, *words, "--json").stdout)["totals"]["train_flops"]
        for words in ((), ("--set", "task.teacher=runs/pair/sparse.safetensors"))
    )
    measured = json.loads((pair / "summary.json").read_text())["cost"]["measured"]["inference_flops"]
    assert taught - plain == 6 * 200 * measured


def test_the_last_dense_model_teaches_the_sparse_phases(acdc: Acdc, recipe: Path) -> None:
    words = ("--set", "task.teacher=last_dense")
    assert acdc("train", recipe, *words, "--out", "runs/own").exit_code == 0
    records = RunDir(Path("runs/own")).records()
    assert [r["train_loss"] != r["train_cross_entropy"] for r in records] == [False, True] * 3


@pytest.mark.slow
def test_a_strangers_file_teaches_with_its_own_mean_and_std(
    acdc: Acdc, recipe: Path, pair: Path, teachers: list[Any]
) -> None:
    torch.save(weights(pair / "dense.safetensors"), "stranger.pth")
    words = ("--set", "task.teacher=stranger.pth", *ONE_EPOCH)
    unnamed = acdc("train", recipe, *words, "--out", "runs/unnamed")
    assert unnamed.exit_code == 2
    assert "name it in task.distillation.model" in unnamed.stderr
    named = acdc("train", recipe, *words, "--set", "task.distillation.model=resnet8", "--out", "runs/named")
    assert named.exit_code == 0, named.output
    (teacher,) = teachers
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(teacher._forward(images), teacher.model(normalised), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("task.teacher=runs/none", "task.teacher: runs/none does not exist"),
        ("task.teacher=runs/other", "task.teacher: runs/other has class "),
        ("task={teacher: runs/pair, distillation: {model: resnet8}}", "remove task.distillation.model"),
        ("task.distillation.weight=0.5", "distillation needs a teacher"),
        ("task={teacher: last_dense}", "last_dense would teach nothing"),
    ],
)
def test_what_cannot_teach_is_refused_in_one_line(
    acdc: Acdc, recipe: Path, pair: Path, words: str, reason: str
) -> None:
    other = RunDir(Path("runs/other"))
    shutil.copytree(pair, other.path)
    text = other.path.joinpath("provenance.json").read_text()
    other.path.joinpath("provenance.json").write_text(text.replace('"7"', '"seven"'))
    result = acdc("train", recipe, *ONE_EPOCH, "--set", words, "--out", "runs/refused")
    assert result.exit_code == 2
    assert reason in result.stderr
    assert result.stderr.strip().count("\n") == 0
    assert not Path("runs/refused").exists()


def test_a_teacher_of_other_data_teaches_with_a_warning(acdc: Acdc, recipe: Path, pair: Path) -> None:
    resolved = pair / "resolved.yaml"
    resolved.write_text(resolved.read_text().replace("name: folder", "name: cifar10"))
    words = ("--set", "task.teacher=runs/pair", *ONE_EPOCH, "--out", "runs/taught")
    result = acdc("train", recipe, *words)
    assert result.exit_code == 0, result.output
    assert "was trained on cifar10, this run trains on folder" in result.stderr
