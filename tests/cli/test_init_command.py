from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import run_acdc
from digits import image_folders
from typer.testing import CliRunner

from acdc_cli.cli import completion
from acdc_cli.recipe.load import load
from acdc_cli.runs.run_dir import open_run

WORDS = ("--method", "acdc", "--target", "0.8", "--epochs", "4")


def test_init_asks_six_questions_takes_their_answers_and_warns_of_what_is_odd(in_tmp: Path) -> None:
    from acdc_cli.cli.app import app

    images = image_folders(in_tmp, shrink=6)
    (images / "train/1/copy.png").write_bytes(min((images / "train/0").iterdir()).read_bytes())
    answers = f"{images}\nresnet8\ngmp\n0\n12\ncpu\n"
    asked = CliRunner().invoke(app, ["init", "--out", "my.yaml"], input=answers)
    assert asked.exit_code == 0, asked.output
    assert asked.stdout.endswith("my.yaml\n")
    recipe = load("my.yaml")
    assert (recipe.model.name, recipe.sparsity.method, recipe.epochs, recipe.device) == ("resnet8", "gmp", 12, "cpu")
    said = " ".join(asked.stderr.split())
    assert "warning: train: 1 images are copies of others" in said
    assert "warning: sparsity.target: at 0 no weight is pruned" in said
    silent = run_acdc("init", "--data", images, "--out", "other.yaml")
    assert silent.exit_code == 2
    assert "--yes" in silent.stderr
    assert run_acdc("init", "--data", images, "--yes").stdout.endswith("images_resnet20_acdc_90.yaml\n")


def test_a_model_is_trained_without_a_recipe_and_leaves_one(in_tmp: Path) -> None:
    images = image_folders(in_tmp, shrink=6)
    words = ("--set", "model.name=resnet8", "--set", "track.wandb=disabled", "--set", "data.images=40")
    trained = run_acdc("train", "resnet20", "--data", images, *WORDS, *words, "--set", "data.workers=0")
    assert trained.exit_code == 0, trained.output
    run = open_run(Path("runs/images_resnet20_acdc_80-0"))
    left = load(run.path / "recipe.yaml")
    assert (left.model.name, left.epochs, left.data.path) == ("resnet20", 4, str(images))
    assert run.final()["sparse"]["sparsity"] == pytest.approx(0.8, abs=1e-4)  # type: ignore[index]


def test_the_words_without_a_recipe_need_data(in_tmp: Path) -> None:
    refused = run_acdc("train", "demo", "--target", "0.9")
    assert refused.exit_code == 2
    assert "sparsity.target=" in refused.stderr


@pytest.fixture
def run_of_before(in_tmp: Path) -> str:
    run = in_tmp / "runs/small-0"
    run.mkdir(parents=True)
    for name in ("resolved.yaml", "recipe.yaml"):
        (run / name).touch()
    return "runs/small-0"


def test_the_shell_completes_names_without_torch(run_of_before: str) -> None:
    code = "import sys; sys.argv = ['acdc']; from acdc_cli.cli.app import app\ntry: app(prog_name='acdc')\n"
    code += "finally: print('torch' in sys.modules, file=sys.stderr)"
    words = {"COMP_WORDS": "acdc plan demo --set sparsity.ba", "COMP_CWORD": "4", "_ACDC_COMPLETE": "complete_bash"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **words})
    assert done.stderr == "False\n"
    # of Top-KAST and of SNIP, whose files are not imported
    assert {"sparsity.backward_sparsity=", "sparsity.batches="} == set(done.stdout.split())


def test_recipes_runs_methods_and_keys_are_completed(run_of_before: str) -> None:
    assert completion.recipes("cifar/resnet20_9") == ["cifar/resnet20_90", "cifar/resnet20_95"]
    assert completion.recipes_and_runs("runs/") == completion.runs("r") == [run_of_before]
    assert completion.methods("sn") == ["snfs", "snip"]
    assert completion.studies("epoch") == ["epoch_length", "epoch_length_demo"]
    assert completion.analyses("cu") == ["curves"]
    assert completion.keys("optim.schedule.e") == ["optim.schedule.end="]
    assert {"epochs=", "sparsity.target=", "sparsity.keep_dense="} <= set(completion.keys(""))
