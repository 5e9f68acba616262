"""A run whose model is made by a file of the user's: the run keeps the file, and later commands use the copy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import run_acdc, train_here
from digits import TINY, image_folders
from safetensors.torch import load_file
from typer.testing import Result

from acdc_cli.errors import RunError
from acdc_cli.models.tensors import read_header
from acdc_cli.recipe import code
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.runs.tracker import JsonLines

NET = """from blocks import Block
from torch import nn


def make(num_classes, width=4):
    return nn.Sequential(Block(3, width), Block(width, width), nn.Flatten(), nn.Linear(4 * width, num_classes))
"""
BLOCKS = """from torch import nn
from torch.nn import functional as F


class Block(nn.Conv2d):
    def __init__(self, before, after):
        super().__init__(before, after, 3, stride=2, padding=1)

    def forward(self, images):
        return F.relu(super().forward(images))
"""
RECIPE = """extends: demo
name: own
epochs: 2
model: {name: nets/net.py:make, options: {width: 6}}
data: {name: folder, path: DATA, batch_size: 50, loader: torch, workers: 0, %s}
optim: {lr: 0.05, schedule: {warmup_epochs: 0}}
sparsity: {method: oneshot, at: 0, target: 0.5}
checkpoint: {keep_states: [1]}
"""
Fresh = Callable[..., Result]


def lay_out(folder: Path, data: Path) -> None:
    (folder / "nets").mkdir()
    (folder / "nets/net.py").write_text(NET)
    (folder / "nets/blocks.py").write_text(BLOCKS)
    (folder / "recipe.yaml").write_text((RECIPE % TINY).replace("DATA", str(data)))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folders(tmp_path_factory.mktemp("digits"), shrink=6)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Fresh:
    """A command as in a process of its own, which has not read any model's code yet."""

    def run(*words: str | Path) -> Result:
        monkeypatch.setattr(code, "_known", {})
        return run_acdc(*words)

    return run


@pytest.fixture(scope="module")
def _trained(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    home = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        lay_out(home, images)
        patch.chdir(home)
        result = run_acdc("train", "recipe.yaml")
    assert result.exit_code == 0, result.output
    return home


@pytest.fixture
def run(_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of the recipe, with its files, in the working directory."""
    shutil.copytree(_trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("runs/own-0")


def spoil() -> None:
    """The originals no longer work."""
    for file in Path("nets").glob("*.py"):
        file.write_text("raise SystemError('edited')\n")


def top1(result: Result) -> float:
    assert result.exit_code == 0, result.output
    value: float = json.loads(result.stdout)["top1"]
    return value


def test_the_run_keeps_the_file_with_what_it_imports_and_their_digests(run: Path) -> None:
    assert {file.name: file.read_text() for file in (run / "model").iterdir()} == {"net.py": NET, "blocks.py": BLOCKS}
    resolved = RunDir(run).recipe()["model"]
    (entry,) = RunDir(run).provenance()
    assert resolved["name"] == "net.py:make"
    assert entry["model_code"] == code.facts(resolved["code"])["model_code"]
    assert json.loads(read_header(run / "sparse.safetensors")["acdc"])["recipe"]["model"]["code"] == resolved["code"]


def test_later_commands_use_the_copy_wherever_the_run_lies(run: Path, fresh: Fresh) -> None:
    expected = json.loads((run / "summary.json").read_text())["sparse"]["top1"]
    spoil()
    shutil.move(run, "moved")
    assert top1(fresh("eval", "--checkpoint", "moved", "--json")) == expected
    assert top1(fresh("eval", "--checkpoint", "moved/sparse.safetensors", "--json")) == expected
    # each of these makes a run with a copy of its own
    for words in (
        ("prune", "moved", "--method", "oneshot", "--target", "0.6", "--out", "made"),
        ("train", "--fork", "moved@1", "--out", "made"),
        ("train", "moved/resolved.yaml", "--set", "epochs=1", "--set", "checkpoint.keep_states=[]", "--out", "made"),
    ):
        result = fresh(*words)
        assert result.exit_code == 0, result.output
        assert (Path("made/model/blocks.py")).read_text() == BLOCKS
        assert fresh("eval", "--checkpoint", "made").exit_code == 0
        shutil.rmtree("made")
    assert fresh("plan", "recipe.yaml").stderr == "error: nets/net.py:1: SystemError: edited\n"


def test_an_unfinished_run_resumes_with_its_copy(run: Path, fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_file(run / "sparse.safetensors")
    shutil.rmtree(run)

    def fail_at_last(tracker: JsonLines, record: dict[str, Any]) -> None:
        if record["epoch"] == 1:
            raise RunError("stopped")
        log(tracker, record)

    log = JsonLines.log
    with monkeypatch.context() as patch:
        patch.setattr(JsonLines, "log", fail_at_last)
        assert fresh("train", "recipe.yaml").exit_code == 2
    (Path("nets/blocks.py")).write_text(BLOCKS + "# edited\n")
    resumed = fresh("train", "recipe.yaml", "--resume")
    assert resumed.exit_code == 0, resumed.output
    said = " ".join(resumed.stderr.split())
    assert "net.py:make has changed since the run began, which resumes with its copy in runs/own-0/model" in said
    assert (run / "model/blocks.py").read_text() == BLOCKS
    tensors = load_file(run / "sparse.safetensors")
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_code_that_has_not_changed_is_not_mentioned(run: Path, fresh: Fresh) -> None:
    result = fresh("train", "recipe.yaml", "--resume")
    assert result.stderr == f"error: {run} is finished: there is nothing to resume\n"


def test_a_copy_that_was_edited_is_refused(run: Path, fresh: Fresh) -> None:
    (run / "model/blocks.py").write_text(BLOCKS + "# edited\n")
    result = fresh("eval", "--checkpoint", run)
    assert result.exit_code == 2
    assert "model.code: the code of this model is " in result.stderr
    assert "runs/own-0/model/net.py with what it imports is " in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_file_without_its_run_asks_for_the_code(run: Path, fresh: Fresh) -> None:
    expected = top1(fresh("eval", "--checkpoint", run, "--json"))
    shutil.copy(run / "sparse.safetensors", "alone.safetensors")
    alone = ("eval", "--checkpoint", "alone.safetensors", "--json")
    refused = fresh(*alone)
    assert refused.exit_code == 2
    assert "does not contain that file: name it with --model FOLDER/net.py:make" in refused.stderr
    named = fresh(*alone, "--model", "nets/net.py:make")
    assert top1(named) == expected
    assert "may differ" not in named.stderr
    (Path("nets/blocks.py")).write_text(BLOCKS + "# edited\n")
    warned = fresh(*alone, "--model", "nets/net.py:make")
    assert top1(warned) == expected
    assert "nets/net.py:make is not the code that alone.safetensors was trained with" in " ".join(warned.stderr.split())


@pytest.mark.slow
def test_a_run_that_began_from_a_renamed_file_with_a_new_head_has_its_own_names(run: Path, fresh: Fresh) -> None:
    state = load_file(run / "dense.safetensors" if (run / "dense.safetensors").exists() else run / "sparse.safetensors")
    torch.save({f"theirs{name}": tensor for name, tensor in state.items()}, "theirs.pt")
    begun = ("model.weights=theirs.pt", "model.rename=[theirs0=0,theirs1=1,theirs3=3]", "model.new_head=true")
    more = ("epochs=1", "checkpoint.keep_states=[]", "sparsity={method: dense}")
    result = fresh(
        "train", "recipe.yaml", *(word for each in (*begun, *more) for word in ("--set", each)), "--out", "b"
    )
    assert result.exit_code == 0, result.output
    expected = json.loads(Path("b/summary.json").read_text())["dense"]["top1"]
    assert top1(fresh("eval", "--checkpoint", "b", "--json")) == expected
    assert top1(fresh("eval", "--checkpoint", "b/dense.safetensors", "--json")) == expected


def test_other_logits_than_one_for_each_class_are_refused(run: Path, fresh: Fresh) -> None:
    (Path("nets/net.py")).write_text(NET.replace(", num_classes)", ", 7)"))
    result = fresh("train", "recipe.yaml", "--out", "other")
    assert result.exit_code == 2
    assert "the model returns [1, 7] for an image of 5 pixels; expected logits of shape [1, 10]" in result.stderr


def test_an_error_in_the_forward_pass_names_its_line(run: Path, fresh: Fresh) -> None:
    (Path("nets/blocks.py")).write_text(BLOCKS.replace("F.relu(", "F.rely("))
    for words in (("train", "recipe.yaml", "--out", "other"), ("plan", "recipe.yaml")):
        result = fresh(*words)
        assert result.exit_code == 2
        assert "nets/blocks.py:10: AttributeError: module 'torch.nn.functional' has no attribute" in result.stderr
        assert result.stderr.count("\n") == 1


def test_it_trains_without_a_recipe(run: Path, images: Path, fresh: Fresh) -> None:
    words = ("--data", images, "--method", "dense", "--epochs", "1", "--set", "data.workers=0", "--out", "made")
    result = fresh("train", "nets/net.py:make", *words)
    assert result.exit_code == 0, result.output
    assert RunDir(Path("made")).recipe()["name"] == "images_net.py-make_dense"
    assert (Path("made/model/net.py")).read_text() == NET
    refused = fresh("train", "nets/net.py", *words)
    assert refused.stderr.endswith(" nets/net.py:FUNCTION\n")


@pytest.mark.slow
def test_a_study_may_compare_files(run: Path, monkeypatch: pytest.MonkeyPatch, fresh: Fresh) -> None:
    (Path("nets/wide.py")).write_text(NET.replace("width=4", "width=8"))
    Path("study.yaml").write_text(
        "# Two nets\nname: nets\nbase: recipe.yaml\nset: {epochs: 1, checkpoint.keep_states: [], model.options: {}}\n"
        "axes: {model.name: [nets/net.py:make, nets/wide.py:make]}\n"
    )
    train_here(monkeypatch)
    result = fresh("sweep", "study.yaml")
    assert result.exit_code == 0, result.output
    copies = {file.name for file in Path("studies").rglob("model/*.py")}
    assert copies == {"net.py", "wide.py", "blocks.py"}


@pytest.mark.slow
def test_two_processes_train_it(run: Path) -> None:
    words = ["train", "recipe.yaml", "--gpus", "2", "--set", "device=cpu", "--out", "two"]
    done = subprocess.run([sys.executable, "-m", "acdc_cli", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (Path("two/model/blocks.py")).read_text() == BLOCKS
