"""`acdc transfer`, from a sparse run to a set of other classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command import Acdc, run_acdc
from digits import TINY, image_folders

from acdc_cli.errors import RecipeError
from acdc_cli.jobs import downstream, setup, transfer_run
from acdc_cli.jobs.subjects import Asked, Checkpoint
from acdc_cli.models.tensors import load_tensors
from acdc_cli.recipe.load import load

TEXT = "language/kjv_90"
QUICK = (
    "--set",
    "epochs=2",
    "--set",
    "data.batch_size=20",
    "--set",
    "data.workers=0",
    "--set",
    "data.augment=pad_crop",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two seeds on digits 0 to 4, at 80 %, and the digits 5 to 7 as another set."""
    home = tmp_path_factory.mktemp("transfer")
    images = image_folders(home, shrink=6)
    for split in ("train", "val"):
        for digit in "567":
            shutil.move(images / split / digit, home / "other" / split / digit)
        for digit in "89":
            shutil.rmtree(images / split / digit)
    data = f"data={{name: folder, path: {images}, batch_size: 20, loader: torch, workers: 0, {TINY}}}"
    sets = ("epochs=1", "optim.schedule.warmup_epochs=0", "sparsity.target=0.8", data)
    for seed in (0, 1):
        words = [word for each in (*sets, f"seed={seed}") for word in ("--set", each)]
        result = run_acdc("train", "demo_static", *words, "--out", home / f"small-{seed}")
        assert result.exit_code == 0, result.output
    return home


def test_linear_transfer_gathers_models_and_seeds_and_computes_nothing_twice(
    home: Path, acdc: Acdc, tmp_path: Path
) -> None:
    words = (home / "small-0", home / "small-1", "--to", home / "other", "--seeds", 2, "--check", *QUICK)
    result = acdc("transfer", *words, "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["results"]["sets"]
    assert (row["set"], row["model"], row["metric"], row["repetitions"]) == ("other", "small", "top1", 4)
    assert 0.2 < row["mean"] <= 1
    assert 0.2 < row["logistic"] <= 1
    assert len(list((tmp_path / "features").glob("*[0-9a-f].npy"))) == 4
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "results").iterdir()}
    assert len(before) == 8
    assert acdc("transfer", *words, "--out", tmp_path).exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "results").iterdir()} == before
    assert {file.name for file in tmp_path.glob("transfer.*")} == {
        f"transfer.{kind}" for kind in ("json", "csv", "png", "svg")
    }


def test_full_transfer_trains_living_weights_and_keeps_zeros(home: Path, acdc: Acdc, tmp_path: Path) -> None:
    words = (home / "small-0", "--to", home / "other", "--mode", "full", "--seeds", 1, *QUICK, "--out", tmp_path)
    result = acdc("transfer", *words)
    assert result.exit_code == 0, result.output
    before, _ = load_tensors(home / "small-0/sparse.safetensors")
    (run,) = (tmp_path / "runs").iterdir()
    after, _ = load_tensors(run / "sparse.safetensors")
    assert after["fc.weight"].shape == (3, 64)
    masked = [name for name in before if name.endswith("conv1.weight") and name != "conv1.weight"]
    assert masked
    for name in masked:
        assert torch.equal(before[name] == 0, after[name] == 0)
        assert not torch.equal(before[name], after[name])
    (cell,) = (json.loads(file.read_text()) for file in (tmp_path / "results").glob("*.json"))
    body = [name for name in before if before[name].ndim == 4]
    zeros, weights = (
        sum(count(before[name]) for name in body) for count in (lambda t: int((t == 0).sum()), torch.numel)
    )
    assert cell["sparsity"] == zeros / weights
    labels, predicted = np.load(next((tmp_path / "results").glob("*.npy")))
    assert cell["scores"]["top1"] == (labels == predicted).mean()
    assert not list(tmp_path.glob("*.yaml"))
    # a run that has ended is judged, not trained again
    (file,) = (tmp_path / "results").glob("*.json")
    file.unlink()
    trained = {each: each.stat().st_mtime_ns for each in run.rglob("*")}
    assert acdc("transfer", *words).exit_code == 0
    assert json.loads(file.read_text()) == cell
    assert {each: each.stat().st_mtime_ns for each in run.rglob("*")} == trained


def test_aie_is_taken_against_the_named_baseline(home: Path, acdc: Acdc, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(home / "small-1", other)
    recipe = other / "resolved.yaml"
    assert "lr: 0.1\n" in recipe.read_text()
    recipe.write_text(recipe.read_text().replace("lr: 0.1\n", "lr: 0.2\n"))
    words = (home / "small-0", other, "--to", home / "other", "--seeds", 1, *QUICK, "--out", tmp_path / "out", "--json")
    results = json.loads(acdc("transfer", *words, "--baseline", other).stdout)["results"]
    (row,) = results["aie"]
    error = {each["model"]: 1 - each["mean"] for each in results["sets"]}
    assert (row["model"], row["baseline"], results["baseline"]) == ("small", "other", "other")
    assert row["aie"] == pytest.approx((error["small"] - error["other"]) / error["other"])
    assert row["low"] <= row["aie"] <= row["high"]


def test_a_checkpoint_of_another_project_is_transferred(home: Path, acdc: Acdc, tmp_path: Path) -> None:
    weights, _ = load_tensors(home / "small-0/sparse.safetensors")
    file = tmp_path / "theirs.pth"
    torch.save({"state_dict": weights}, file)
    words = ("--to", home / "other", "--seeds", 1, *QUICK, "--set", "optim.schedule.milestones=[1]")
    result = acdc("transfer", file, "--model", "resnet8", *words, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["results"]["sets"]
    assert row["model"].endswith("theirs")
    assert row["sparsity"] > 0.5


def test_who_breaks_off_is_told_how_to_resume(
    home: Path, acdc: Acdc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_off(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(transfer_run, "_compute", broken_off)
    result = acdc("transfer", home / "small-0", "--to", home / "other", *QUICK, "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert "interrupted; what is done is saved, and the same command resumes it" in result.stderr


def test_models_and_sets_are_of_one_kind_of_inputs() -> None:
    images, text = (Checkpoint(Path(name), Asked(), name, load(name)) for name in ("demo", TEXT))
    with pytest.raises(RecipeError, match=f"demo is a model of images, and {TEXT} of text; transfer them"):
        transfer_run._opened(["other"], [images, text])
    with pytest.raises(RecipeError, match=r"takes models of images and sentences, and .* is a recipe on text"):
        transfer_run._opened(["other"], [text])


def test_a_model_without_zeros_is_trained_densely() -> None:
    recipe = load("demo_dense", ["device=cpu"])
    ready = setup.build(recipe, 10)
    assert downstream.with_fixed_masks(recipe, ready) is recipe
    with torch.no_grad():
        ready.model.get_parameter("layer1.0.conv1.weight")[:4] = 0
    block = downstream.with_fixed_masks(recipe, ready).sparsity
    weights = sum(layer.shape.numel() for layer in ready.layers) - 640
    assert (block.method, block.target) == ("oneshot", 4 * 16 * 9 / weights)  # type: ignore[attr-defined]


def test_a_folder_holds_one_protocol_for_each_model_and_set(home: Path, acdc: Acdc, tmp_path: Path) -> None:
    words = (home / "small-0", "--to", home / "other", "--seeds", 1, *QUICK, "--out", tmp_path)
    assert acdc("transfer", *words).exit_code == 0
    before = sorted((tmp_path / "results").iterdir())
    result = acdc("transfer", *words, "--set", "epochs=3")
    assert result.exit_code == 2
    assert "results of two protocols of small on other (linear); choose another folder" in result.stderr
    assert sorted((tmp_path / "results").iterdir()) == before


@pytest.mark.parametrize("words", [(), ("run", "--study", "study")])
def test_models_come_from_runs_or_from_a_study(acdc: Acdc, words: tuple[str, ...]) -> None:
    result = acdc("transfer", *words, "--to", "set")
    assert result.exit_code == 2
    assert "or a study with" in result.stderr


@pytest.mark.parametrize(
    ("change", "words", "expected"),
    [
        ("no val", (), "has no val"),
        ("other classes", (), "train and val hold different classes"),
        ("nothing", ("--set", "data.batch_size=1000"), "an epoch would have no step"),
        ("nothing", ("--baseline", "."), "is none of the models"),
    ],
)
def test_what_cannot_be_transferred_is_one_line(
    home: Path, acdc: Acdc, tmp_path: Path, change: str, words: tuple[str, ...], expected: str
) -> None:
    shutil.copytree(home / "other", tmp_path / "set")
    if change == "no val":
        shutil.rmtree(tmp_path / "set/val")
    if change == "other classes":
        shutil.move(tmp_path / "set/val/5", tmp_path / "set/val/4")
    result = acdc(
        "transfer", home / "small-0", "--to", tmp_path / "set", "--seeds", 1, *QUICK, *words, "--out", tmp_path / "out"
    )
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
