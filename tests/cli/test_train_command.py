"""`acdc train` and `acdc eval` from end to end, on real digits, in real run directories."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command import DENSE, Acdc, Finished
from safetensors.torch import load_file, save_file
from torch import Tensor

from acdc_cli.data.batches import Batch
from acdc_cli.jobs.training_run import _check_continuity
from acdc_cli.models import build
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.schedule.time import Moment
from acdc_cli.training import checkpoint
from acdc_cli.training.trainer import Trainer

KEYS = ["top1", "top5", "loss", "entropy", "sparsity", "sparsity_all", "params", "nonzero", "flops", "samples", "task"]


def untimed(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in r.items() if key not in ("seconds", "images_per_second")} for r in records]


def flat(text: str) -> str:
    return " ".join(text.split())


def sets(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def test_a_recipe_becomes_a_run_directory(recipe: Path, finished: Finished) -> None:
    result = finished()
    run = Path("runs/small-0")
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints",
        "dense.safetensors",
        "masks",
        "metrics.jsonl",
        "provenance.json",
        "recipe.yaml",
        "resolved.yaml",
        "sparse.safetensors",
        "summary.json",
    ]
    assert (run / "recipe.yaml").read_text() == recipe.read_text()
    assert [record["phase"] for record in untimed(run)] == ["dense", "sparse"] * 3
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert (summary["sparse"]["epoch"], summary["dense"]["epoch"]) == (5, 4)
    (entry,) = json.loads((run / "provenance.json").read_text())
    assert entry["packages"]["torch"] == torch.__version__.split("+")[0]
    assert entry["data"]["loader"] == "torch"
    assert [line.split()[:2] for line in result.stderr.splitlines()[-8:] if line[3:4].isdigit()][-1] == ["5", "sparse"]
    assert "zeros by layer:" in result.stderr


def test_eval_gives_the_numbers_that_training_saw(acdc: Acdc, finished: Finished) -> None:
    finished()
    for which, epoch in (("sparse", 5), ("dense", 4)):
        document = json.loads(acdc("eval", "--checkpoint", "runs/small-0", "--which", which, "--json").stdout)
        assert list(document) == KEYS
        record = untimed(Path("runs/small-0"))[epoch]
        assert document["loss"] == pytest.approx(record["val_loss"], rel=1e-5)
        for key in ("top1", "top5", "sparsity", "sparsity_all"):
            assert document[key] == record[key]
        assert document["entropy"] == pytest.approx(record["entropy"], rel=1e-5)
        assert document["samples"] == 100
    missing = acdc("eval", "--checkpoint", "runs/small-0", "--which", "sparse-ema")
    assert missing.exit_code == 2
    assert "has no sparse-ema model; it has --which sparse" in flat(missing.stderr)
    by_file = acdc(
        "eval", "--checkpoint", "runs/small-0/sparse.safetensors", "--batch-size", "7", "--loader", "torch", "--json"
    )
    by_state = acdc("eval", "--checkpoint", "runs/small-0/checkpoints/last.pt", "--json")
    by_run = acdc("eval", "--checkpoint", "runs/small-0", "--json")
    numbers = [json.loads(result.stdout) for result in (by_run, by_state, by_file)]
    assert {each.pop("task") for each in numbers} == {"multiclass"}
    assert numbers[0] == numbers[1]
    assert numbers[2] == pytest.approx(numbers[0], rel=1e-5)


@pytest.mark.slow
def test_the_average_of_the_weights_is_trained_beside_them_and_judged_by_its_name(acdc: Acdc, recipe: Path) -> None:
    trained = acdc("train", recipe, "--set", "ema.decay=0.5", "--set", "optim={name: lamb, lr: 0.01}")
    assert trained.exit_code == 0, trained.output
    records = untimed(Path("runs/small-0"))
    for which, epoch in (("sparse-ema", 5), ("dense-ema", 4)):
        document = json.loads(acdc("eval", "--checkpoint", "runs/small-0", "--which", which, "--json").stdout)
        for key in ("top1", "top5", "sparsity", "sparsity_all"):
            assert document[key] == records[epoch][f"ema_{key}"]
        assert document["loss"] == pytest.approx(records[epoch]["ema_val_loss"], rel=1e-5)
        assert f"{which}: top-1 {document['top1']:.2%} in runs/small-0/{which}.safetensors" in flat(trained.stderr)
        by_file = acdc("eval", "--checkpoint", f"runs/small-0/{which}.safetensors", "--json")
        assert json.loads(by_file.stdout)["top1"] == document["top1"]
    assert records[5]["ema_sparsity"] == records[5]["sparsity"] > 0.89


def test_the_sparse_model_has_exactly_the_zeros_that_were_asked_for(finished: Finished) -> None:
    finished()
    weights = load_file("runs/small-0/sparse.safetensors")
    masks = checkpoint.load_masks(Path("runs/small-0/masks/epoch-0005-sparse.safetensors"))
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.1 * total)
    assert all((weights[name][~mask] == 0).all() for name, mask in masks.items())
    assert "conv1.weight" not in masks  # the first layer is kept dense
    assert (load_file("runs/small-0/dense.safetensors")[next(iter(masks))] != 0).float().mean() > 0.9


def test_a_run_starts_from_the_dense_model_of_another(acdc: Acdc, recipe: Path, finished_dense: Finished) -> None:
    finished_dense("first")
    oneshot = "sparsity={method: oneshot, target: 0.5, at: 0, from_checkpoint: first}"
    still = ("--set", "optim.lr=1e-9", "--set", "epochs=1", "--out", "second")
    assert acdc("train", recipe, "--set", oneshot, *still).exit_code == 0
    before, after = load_file("first/dense.safetensors"), load_file("second/sparse.safetensors")
    for name, weight in before.items():
        if name.endswith(("conv1.weight", "conv2.weight")):
            kept = after[name] != 0
            torch.testing.assert_close(after[name][kept], weight[kept])
    result = acdc("eval", "--checkpoint", "second", "--json")
    shutil.rmtree("first")
    assert acdc("eval", "--checkpoint", "second", "--json").stdout == result.stdout, "the run stands by itself"
    assert json.loads(result.stdout)["sparsity"] == pytest.approx(0.5, abs=1e-4)


def test_a_run_goes_on_when_the_model_it_started_from_is_gone(
    acdc: Acdc, recipe: Path, finished_dense: Finished
) -> None:
    finished_dense("first")
    oneshot = ("--set", "sparsity={method: oneshot, target: 0.5, at: 0, from_checkpoint: first}", "--set", "epochs=2")
    assert acdc("train", recipe, *oneshot, "--out", "whole").exit_code == 0
    shutil.copytree("whole", "halted")
    # as if it had been stopped after its first epoch
    state = torch.load("halted/checkpoints/previous.pt", weights_only=True)
    assert state["epoch"] == 1
    for file in ("summary.json", "checkpoints/last.pt"):
        (Path("halted") / file).unlink()
    Path("halted/checkpoints/previous.pt").rename("halted/checkpoints/last.pt")
    shutil.rmtree("first")
    result = acdc("train", "halted", "--resume")
    assert result.exit_code == 0, result.output
    assert untimed(Path("halted")) == untimed(Path("whole"))


def test_a_run_of_another_machine_is_judged_on_this_one(acdc: Acdc, finished_dense: Finished) -> None:
    finished_dense()
    resolved = Path("runs/small-0/resolved.yaml")
    resolved.write_text(resolved.read_text().replace("device: auto", "device: cuda"))
    result = acdc("eval", "--checkpoint", "runs/small-0", "--json", "--set", "device=cpu")
    assert json.loads(result.stdout)["top1"] == untimed(Path("runs/small-0"))[0]["top1"]


def test_a_foreign_checkpoint_is_judged_by_name_of_model_and_data(
    acdc: Acdc, finished_dense: Finished, digits: Path
) -> None:
    finished_dense()
    own = load_file("runs/small-0/dense.safetensors")
    save_file({f"module.{name}": value for name, value in own.items()}, "foreign.safetensors")
    torch.save({"state_dict": own}, "foreign.pt")
    by = ("--model", "resnet8", "--data", digits, "--json")
    result = acdc("eval", "--checkpoint", "foreign.safetensors", *by, "--set", "data.val_images=5")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert list(document) == KEYS
    assert (document["samples"], document["sparsity"]) == (5, 0.0)
    assert "preprocessing: 5 pixels, crop 5, bilinear, mean [0.485, 0.456, 0.406]" in flat(result.stderr)
    mean, std = "data.mean=[0.1307, 0.1307, 0.1307]", "data.std=[0.3081, 0.3081, 0.3081]"
    for file in ("foreign.safetensors", "foreign.pt"):
        same = acdc("eval", "--checkpoint", file, *by, *sets(mean, std))
        document = json.loads(same.stdout)
        assert (document["top1"], document["samples"]) == (untimed(Path("runs/small-0"))[0]["top1"], 100)
        assert "5 pixels, crop 5, bilinear, mean [0.1307, 0.1307, 0.1307]" in flat(same.stderr)
    refused = acdc("eval", "--checkpoint", "foreign.pt")
    assert refused.exit_code == 2
    assert "--model" in refused.stderr


@pytest.mark.slow
def test_small_images_before_a_model_for_large_ones_are_said(acdc: Acdc, digits: Path, tmp_path: Path) -> None:
    torch.save(build.find("resnet18")(num_classes=10).state_dict(), tmp_path / "large.pt")
    few = ("--set", "data.val_images=1")
    result = acdc("eval", "--checkpoint", tmp_path / "large.pt", "--model", "resnet18", "--data", digits, *few)
    assert result.exit_code == 0, result.output
    assert "torchvision's ResNet18_Weights.IMAGENET1K_V1" in flat(result.stderr)
    assert "images of 5 pixels are enlarged to 256" in flat(result.stderr)


def test_a_finished_run_is_never_overwritten(acdc: Acdc, recipe: Path, finished_dense: Finished) -> None:
    finished_dense()
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    again = acdc("train", recipe)
    assert again.exit_code == 2
    assert "never overwritten" in flat(again.stderr)
    resumed = acdc("train", recipe, "--resume")
    assert resumed.exit_code == 2
    assert "nothing to resume" in flat(resumed.stderr)
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before


def test_a_run_that_was_stopped_resumes_to_the_same_bits(
    acdc: Acdc, recipe: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished("whole")
    take_step, steps = Trainer._take_step, itertools.count(1)

    def interrupted(trainer: Trainer, *arguments: Any) -> torch.Tensor:
        # an epoch has four
        if next(steps) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_take_step", interrupted)
        stopped = acdc("train", recipe, "--out", "cut")
    assert_stopped(stopped.exit_code, stopped.stderr)
    assert_resumes(acdc, recipe)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGUSR1])
def test_a_process_that_was_stopped_leaves_a_run_that_resumes_to_the_same_bits(
    acdc: Acdc, recipe: Path, finished: Finished, sign: signal.Signals
) -> None:
    finished("whole")
    command = [sys.executable, "-m", "acdc_cli", "train", str(recipe), "--out", "cut"]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path})
    deadline = time.monotonic() + 120
    while not Path("cut/checkpoints/previous.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(sign)
    _, said = process.communicate(timeout=60)
    if sign != signal.SIGKILL:
        assert_stopped(process.returncode, said)
    assert_resumes(acdc, recipe)


def assert_stopped(exit_code: int, said: str) -> None:
    assert exit_code == 75
    assert "stopped and saved after step" in flat(said)
    assert "resume with: acdc train cut --resume" in flat(said)


def assert_resumes(acdc: Acdc, recipe: Path) -> None:
    """The run `cut` is not over, and resumes with its own recipe alone, to the bits of the run `whole`."""
    assert not Path("cut/summary.json").exists(), "the run was over before it could be stopped"
    refused = acdc("train", recipe, "--out", "cut")
    assert refused.exit_code == 2
    assert "--resume" in refused.stderr
    other = acdc("train", recipe, "--out", "cut", "--resume", "--set", "optim.lr=0.5")
    assert other.exit_code == 2
    assert "optim.lr: 0.05 there, 0.5 here" in flat(other.stderr)

    resumed = acdc("train", recipe, "--out", "cut", "--resume", "auto")
    assert resumed.exit_code == 0, resumed.output
    assert untimed(Path("cut")) == untimed(Path("whole"))
    for kind in ("sparse", "dense"):
        ours, theirs = load_file(f"cut/{kind}.safetensors"), load_file(f"whole/{kind}.safetensors")
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert len(json.loads(Path("cut/provenance.json").read_text())) == 2


def test_a_run_whose_checkpoints_are_gone_or_damaged_is_left_as_it_is(acdc: Acdc, finished: Finished) -> None:
    finished("run")
    Path("run/summary.json").unlink()
    for checkpoint_file in Path("run/checkpoints").glob("*.pt"):
        checkpoint_file.write_bytes(b"torn")
    before = {path: path.read_bytes() for path in Path("run").rglob("*.*") if path.is_file()}
    damaged = acdc("train", "run", "--resume")
    assert damaged.exit_code == 2
    assert "damaged" in damaged.stderr
    for checkpoint_file in Path("run/checkpoints").glob("*.pt"):
        before.pop(checkpoint_file)
        checkpoint_file.unlink()
    gone = acdc("train", "run", "--resume")
    assert gone.exit_code == 2
    assert "run has trained 6 epochs, but its checkpoints are gone, or its loss was NaN" in flat(gone.stderr)
    assert {path: path.read_bytes() for path in Path("run").rglob("*.*") if path.is_file()} == before


def test_a_place_that_no_folder_can_have_is_said(acdc: Acdc, recipe: Path) -> None:
    refused = acdc("train", recipe, "--out", "a" * 300)
    assert refused.exit_code == 2
    assert "cannot be written: File name too long" in flat(refused.stderr)


def test_resume_auto_starts_what_is_not_there_and_leaves_what_is_finished(acdc: Acdc, recipe: Path) -> None:
    started = acdc("train", recipe, "--resume", "auto", *sets(*DENSE))
    assert started.exit_code == 0, started.output
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    again = acdc("train", recipe, "--resume", "auto", *sets(*DENSE))
    assert again.exit_code == 0
    assert "runs/small-0 is finished: there is nothing to do" in flat(again.stderr)
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before


def test_resume_takes_auto_or_nothing(acdc: Acdc, recipe: Path) -> None:
    refused = acdc("train", recipe, "--resume=always")
    assert refused.exit_code == 2
    assert "expected nothing or auto" in flat(refused.output)
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_begins_again(acdc: Acdc, recipe: Path) -> None:
    dense = sets("epochs=2", "sparsity={method: dense}", "checkpoint.every_epochs=2")
    assert acdc("train", recipe, "--out", "run", *dense).exit_code == 0
    records = untimed(Path("run"))
    for path in (Path("run/summary.json"), *Path("run/checkpoints").glob("*.pt")):
        path.unlink()
    assert acdc("train", "run", "--resume").exit_code == 0
    assert untimed(Path("run")) == records


def test_a_run_does_not_go_on_from_another_runs_checkpoint(acdc: Acdc, recipe: Path, finished_dense: Finished) -> None:
    finished_dense("run-0")
    assert acdc("train", recipe, "--out", "run-1", *sets(*DENSE, "seed=1")).exit_code == 0
    Path("run-0/summary.json").unlink()
    shutil.copy("run-1/checkpoints/last.pt", "run-0/checkpoints/last.pt")
    before = {path: path.read_bytes() for path in Path("run-0").rglob("*.*") if path.is_file()}
    refused = acdc("train", "run-0", "--resume")
    assert refused.exit_code == 2
    assert "the checkpoint in run-0/checkpoints belongs to another run (seed: 1 there, 0 here)" in flat(refused.stderr)
    assert before == {path: path.read_bytes() for path in Path("run-0").rglob("*.*") if path.is_file()}


def test_a_run_whose_provenance_is_gone_is_refused(acdc: Acdc, finished: Finished) -> None:
    finished("run")
    for name in ("summary.json", "provenance.json"):
        Path("run", name).unlink()
    refused = acdc("train", "run", "--resume")
    assert refused.exit_code == 2
    assert "run has no provenance.json" in flat(refused.stderr)


def test_a_run_does_not_go_on_with_other_images(acdc: Acdc, finished: Finished, digits: Path, in_tmp: Path) -> None:
    finished("run")
    (in_tmp / "run" / "summary.json").unlink()
    swapped = in_tmp / "swapped"
    swapped.mkdir()
    for ours, theirs in (("train", "val"), ("val", "train")):
        for suffix in (".beton", ".beton.json"):
            shutil.copy(digits / f"{ours}{suffix}", swapped / f"{theirs}{suffix}")
    refused = acdc("train", "run", "--resume", "--set", f"data.path={swapped}")
    assert refused.exit_code == 2
    assert "are not those that run was trained on" in flat(refused.stderr)
    shutil.copytree(digits, in_tmp / "moved")
    # where the images lie and what is only warned of may be another
    moved = f"data.path={in_tmp / 'moved'}"
    assert acdc("train", "run", "--resume", "--set", moved, "--set", "optim.lr_batch=50").exit_code == 0


def test_a_run_that_resumes_on_another_machine_is_warned_of_what_differs(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    finished("run")
    run = RunDir(Path("run"))
    now = run.last_start() | {"processes": 2, "precision": "bf16"}
    now["data"] = now["data"] | {"loader": "ffcv"}
    _check_continuity(run, now)
    said = flat(capsys.readouterr().err)
    for what in ("precision fp32 and resumes with bf16", "processes 1 and resumes with 2", "loader torch and resumes"):
        assert f"warning: the run began with {what}" in said
    assert said.count("warning: ") == 3


def test_a_layer_that_a_pattern_does_not_fit_is_told_and_stays_dense(acdc: Acdc, recipe: Path) -> None:
    two_of_four = ("sparsity.pattern=2:4", "sparsity.target=0.5", "sparsity.keep_dense=[last]")
    result = acdc("train", recipe, *sets("epochs=4", *two_of_four))
    assert result.exit_code == 0, result.output
    assert flat(result.stderr).count("sparsity.pattern: 2:4 does not divide") == 1
    masks = checkpoint.load_masks(Path("runs/small-0/masks/epoch-0003-sparse.safetensors"))
    assert masks.pop("conv1.weight").all()
    for mask in masks.values():
        assert (mask.view(mask.shape[0], -1, 4, *mask.shape[2:]).sum(2) == 2).all()


def test_sparsities_of_layers_that_do_not_exist_are_refused_before_a_run_begins(acdc: Acdc, recipe: Path) -> None:
    refused = acdc("train", recipe, "--set", 'sparsity.layers={"layer9.*": 0.5}')
    assert refused.exit_code == 2
    assert "'layer9.*' matches no pruned layer" in flat(refused.stderr)
    assert not Path("runs").exists()


def test_another_batch_than_the_learning_rates_is_warned_of(acdc: Acdc, recipe: Path) -> None:
    result = acdc("train", recipe, *sets(*DENSE, "optim.lr_batch=100"))
    assert result.exit_code == 0
    assert "--set optim.lr=0.025 --set optim.lr_batch=50" in flat(result.stderr)


def test_eval_counts_what_is_left_of_a_model_layer_by_layer(acdc: Acdc, finished: Finished) -> None:
    finished()
    document = json.loads(acdc("eval", "--checkpoint", "runs/small-0", "--layers", "--json").stdout)
    weights = load_file("runs/small-0/sparse.safetensors")
    learned = {name: value for name, value in weights.items() if "running" not in name and "num_batches" not in name}
    assert document["params"] == sum(value.numel() for value in learned.values())
    assert document["nonzero"] == sum(int(value.count_nonzero()) for value in learned.values())
    # of 5 x 5 pixels, halved for the second and third group of layers, and the classifier's one position
    positions = {"conv1": 25, "layer1": 25, "layer2": 9, "layer3": 4, "fc": 1}
    for layer in document["layers"]:
        left = int(weights[f"{layer['name']}.weight"].count_nonzero())
        assert (layer["weights"], layer["nonzero"]) == (weights[f"{layer['name']}.weight"].numel(), left)
        assert layer["flops"] == 2 * left * positions[layer["name"].partition(".")[0]]
    assert document["flops"] == sum(layer["flops"] for layer in document["layers"])
    assert len(document["layers"]) == 8
    table = acdc("eval", "--checkpoint", "runs/small-0", "--layers").stdout
    assert f"nonzero parameters {document['nonzero']:,} of {document['params']:,}" in flat(table)
    assert f"FLOPs of an image, convention A {document['flops'] / 1e9:.4g} G" in flat(table)
    assert "conv1 16x3x3x3 432 432 100.00% 0.022" in flat(table)
    assert "conv1" not in acdc("eval", "--checkpoint", "runs/small-0").stdout


def test_wrong_checkpoints_are_refused_in_one_line(acdc: Acdc, recipe: Path) -> None:
    RunDir(Path("run")).start("", "", {})
    for arguments, said in (
        (["nowhere"], "nowhere does not exist"),
        (["run", "--model", "resnet50"], "whose recipe names the model"),
        ([str(recipe.parent)], "is not a run directory"),
        ([str(recipe)], "not a torch file, or a damaged one"),
    ):
        result = acdc("eval", "--checkpoint", *arguments)
        assert result.exit_code == 2
        assert said in flat(result.stderr)
        assert "Traceback" not in result.output


def test_curves_are_drawn_from_a_run(acdc: Acdc, finished_dense: Finished) -> None:
    finished_dense()
    result = acdc("analyze", "curves", "runs/small-0")
    assert result.exit_code == 0
    assert "runs/small-0/analysis/curves.svg" in result.stdout.split()
    assert Path("runs/small-0/analysis/curves.png").read_bytes().startswith(b"\x89PNG")
    shutil.copytree("runs/small-0", "elsewhere/small-0")
    compared = acdc("analyze", "curves", "runs/small-0", "elsewhere/small-0", "--json")
    assert list(json.loads(compared.stdout)["results"]["runs"]) == ["runs/small-0", "elsewhere/small-0"]
    unknown = acdc("analyze", "curve", "runs/small-0")
    assert unknown.exit_code == 2
    assert "did you mean curves?" in unknown.stderr


def test_a_mistake_that_only_the_data_shows_is_mended_and_trained(acdc: Acdc, recipe: Path) -> None:
    refused = acdc("train", recipe, *sets(*DENSE, "data.resolution=40"))
    assert refused.exit_code == 2
    assert "no crop of 40 fits" in flat(refused.stderr)
    assert acdc("train", recipe, *sets(*DENSE)).exit_code == 0


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_process_is_refused_in_one_line_and_changes_nothing(
    acdc: Acdc, recipe: Path, finished_dense: Finished
) -> None:
    run = RunDir(Path("runs/small-0"))
    for arguments in (sets(*DENSE), [*sets(*DENSE), "--resume"]):
        with run.locked():
            before = contents(run.path)
            refused = acdc("train", recipe, *arguments)
        assert refused.exit_code == 2
        assert flat(refused.stderr) == "error: another process is training in runs/small-0; wait for it, or stop it"
        assert contents(run.path) == before
        if "--resume" not in arguments:
            shutil.rmtree(run.path)
            finished_dense()
            run.summary.unlink()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_adamw_and_low_precision_train_from_a_recipe(acdc: Acdc, recipe: Path, precision: str) -> None:
    optim = "{name: adamw, lr: 0.003, clip_norm: 1.0, accumulate: 2, schedule: {name: step, milestones: [1]}}"
    gmp = "sparsity={method: gmp, target: 0.8, every_epochs: 1}"
    few = ("data.images=50", "data.val_images=50")
    result = acdc("train", recipe, *sets("epochs=3", gmp, f"optim={optim}", f"precision={precision}", *few))
    assert result.exit_code == 0, result.output
    records = untimed(Path("runs/small-0"))
    assert [record["lr"] for record in records] == pytest.approx([0.003, 0.0003, 0.0003])
    assert [record["phase"] for record in records] == ["ramp", "ramp", "sparse"]
    assert records[2]["mask_sparsity"] == pytest.approx(0.8, abs=1e-4)


def test_resolution_grows_over_the_run(acdc: Acdc, recipe: Path) -> None:
    sizes = "data.resolution=[{since: 0, size: 4}, {since: 0.8, size: 5}]"
    crops = "data.augment=random_resized_crop"
    result = acdc("train", recipe, *sets("epochs=5", "sparsity={method: dense}", crops, sizes))
    assert result.exit_code == 0, result.output
    assert [record["resolution"] for record in untimed(Path("runs/small-0"))] == [4, 4, 4, 4, 5]


def test_the_images_have_the_sizes_of_the_methods_clock(
    acdc: Acdc, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[int, set[int]] = {}
    take_step = Trainer._take_step

    def seen(self: Trainer, batch: Batch, moment: Moment, learning_rate: float) -> Tensor:
        shown.setdefault(moment.epoch, set()).add(batch.inputs.shape[-1])
        return take_step(self, batch, moment, learning_rate)

    monkeypatch.setattr(Trainer, "_take_step", seen)
    sizes = "data.resolution=[{since: 0, size: 4}, {since: 0.5, size: 5}]"
    lottery = "sparsity={method: lottery, target: 0.5, prune: 0.5, keep_dense: []}"
    # two rounds of two epochs
    result = acdc("train", recipe, *sets("epochs=4", lottery, "data.augment=random_resized_crop", sizes))
    assert result.exit_code == 0, result.output
    assert shown == {0: {4}, 1: {5}, 2: {4}, 3: {5}}
    assert [record["resolution"] for record in untimed(Path("runs/small-0"))] == [4, 5, 4, 5]


@pytest.mark.slow
def test_a_compiled_model_trains_and_is_saved_under_plain_names(acdc: Acdc, recipe: Path) -> None:
    assert acdc("train", recipe, *sets(*DENSE, "compile=true")).exit_code == 0
    assert "conv1.weight" in load_file("runs/small-0/dense.safetensors")


def test_a_model_that_takes_no_such_images_is_refused_before_the_run(acdc: Acdc, recipe: Path) -> None:
    result = acdc("train", recipe, "--set", "model.name=timm:vit_tiny_patch16_224")
    assert result.exit_code == 2
    assert "the model takes no images of 5 pixels" in flat(result.stderr)
    assert not Path("runs").exists()


def test_a_finished_run_says_what_it_made_and_what_to_do_next(finished: Finished) -> None:
    said = finished().stderr.splitlines()
    assert [line.split(":")[0] for line in said[-5:]] == ["sparse", "dense", "next", "next", "next"]
    # no dense run lies beside it
    assert "acdc train runs/small-0/resolved.yaml --set name=small_dense --set 'sparsity={method: dense}'" in said[-3]
    assert all("acdc " in line and "runs/small-0" in line for line in said[-2:])


def test_a_folder_that_is_no_run_is_no_recipe_either(acdc: Acdc, in_tmp: Path) -> None:
    (in_tmp / "empty").mkdir()
    result = acdc("train", "empty", "--resume")
    assert result.exit_code == 2
    assert "empty is not a run directory" in flat(result.stderr)


def test_what_is_said_fits_a_terminal_of_80_columns(finished: Finished) -> None:
    said = finished().stderr.splitlines()
    table = [line for line in said if line.startswith(("train, val", "  ep", "   ", "     zeros"))]
    assert len(table) >= 8
    assert max(map(len, table)) <= 80


INTERRUPTED = """
import sys, time
from pathlib import Path
from acdc_cli import files
from acdc_cli.cli.app import main

last, write = Path("run/checkpoints/last.pt"), files._Sealing.write

def slow(sealing, data):
    if last.exists():
        print("saving the second checkpoint", flush=True)
        time.sleep(60)
    return write(sealing, data)

files._Sealing.write = slow
sys.argv = ["acdc", "train", sys.argv[1], "--out", "run"]
main()
"""


@pytest.mark.slow
def test_two_ctrl_c_during_a_save_end_the_run_at_once_with_the_checkpoint_before(recipe: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, recipe],
        env=os.environ | {"PYTHONPATH": path},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "saving the second checkpoint\n"
    while process.poll() is None:
        # two that arrive together count as one
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    said = process.communicate()[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "interrupted; resume" in flat(said)
    state = checkpoint.load_state(Path("run/checkpoints"))
    assert state is not None
    assert state["epoch"] == 1


def test_an_interrupted_run_says_how_it_resumes(acdc: Acdc, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(trainer: Trainer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "fit", interrupted)
    result = acdc("train", recipe, "--out", "run")
    assert result.exit_code == 130
    assert "interrupted; resume from the last checkpoint with: acdc train run --resume" in flat(result.stderr)
    assert not RunDir(Path("run")).finished


def test_ctrl_c_while_a_command_ends_changes_neither_its_exit_code_nor_its_output() -> None:
    interrupt = "lambda: os.kill(os.getpid(), signal.SIGINT)"
    lines = ["import atexit, os, signal, sys", f"atexit.register({interrupt})", "sys.argv = ['acdc', '--version']"]
    code = "\n".join([*lines, "from acdc_cli.cli.app import main", "main()"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("acdc ")
