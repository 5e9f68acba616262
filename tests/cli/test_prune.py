"""`acdc prune`: a trained model, pruned without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Acdc, Finished
from safetensors.torch import load_file

from acdc_cli.jobs.pruned_recipe import methods_at_once
from acdc_cli.jobs.subjects import open_subjects
from acdc_cli.recipe.load import load
from acdc_cli.runs.run_dir import RunDir

DENSE = ("conv1.weight", "fc.weight")
"""`keep_dense: [first, last]` of the run that is pruned."""
ONE = ("--method", "oneshot", "--target", "0.9")


SAME_MASKS = ("sparsity={method: oneshot, target: 0.9, at: 0, keep_dense: [first, last]}",)
"""The zeros are the smallest weights."""


def weights(run: str | Path) -> dict[str, torch.Tensor]:
    return {
        name: w for name, w in load_file(Path(run, "sparse.safetensors")).items() if w.ndim > 1 and name not in DENSE
    }


def zeros(run: str | Path) -> int:
    return sum(int((weight == 0).sum()) for weight in weights(run).values())


def statistics_of_the_first_layer(run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each channel over all training images, as validation would prepare them."""
    [subject] = open_subjects([run])
    loaded, seen = subject.load(), []
    loaded.model.get_submodule("conv1").register_forward_hook(lambda layer, given, output: seen.append(output))
    with subject.images("train") as loader, loader.epoch(0) as batches, torch.no_grad():
        for batch in batches:
            loaded.forward(batch.inputs)
    outputs = torch.cat(seen)
    return outputs.mean((0, 2, 3)), outputs.var((0, 2, 3))


def pruned(acdc: Acdc, *arguments: Any) -> dict[str, Any]:
    result = acdc("prune", "runs/small-0", *arguments, "--json")
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_the_smallest_weights_of_the_dense_model_are_zero_and_the_others_are_its_own(
    acdc: Acdc, finished: Finished
) -> None:
    finished()
    document = pruned(acdc, *ONE, "--out", "pruned", "--no-bn-reset")
    before, after = load_file("runs/small-0/dense.safetensors"), load_file("pruned/sparse.safetensors")
    names = list(weights("pruned"))
    magnitudes = torch.cat([before[name].abs().flatten() for name in names])
    threshold = magnitudes.sort(descending=True).values[round(0.1 * len(magnitudes)) - 1]
    for name, weight in before.items():
        expected = weight.where(weight.abs() >= threshold, 0) if name in names else weight
        assert torch.equal(after[name], expected), name
    judged = json.loads(acdc("eval", "--checkpoint", "pruned", "--json").stdout)
    [row] = document["results"]["targets"]
    assert (row["top1"], row["loss"], row["flops"]) == (judged["top1"], judged["loss"], judged["flops"])
    dense = json.loads(acdc("eval", "--checkpoint", "runs/small-0", "--which", "dense", "--json").stdout)
    assert document["results"]["before"]["top1"] == dense["top1"]
    assert document["results"]["before"]["flops"] > row["flops"]


def test_batch_norm_is_estimated_anew_on_the_pruned_model(acdc: Acdc, finished: Finished) -> None:
    finished()
    kept = pruned(acdc, *ONE, "--out", "kept", "--no-bn-reset")
    said = acdc("prune", "runs/small-0", *ONE, "--out", "anew", "--bn-images", "200")
    assert "estimated anew after pruning, on 200 training images; --no-bn-reset" in said.stderr
    anew = json.loads(Path("anew/prune.json").read_text())
    assert all(torch.equal(weight, weights("kept")[name]) for name, weight in weights("anew").items())
    mean, variance = statistics_of_the_first_layer(Path("anew"))
    state = load_file("anew/sparse.safetensors")
    torch.testing.assert_close(state["bn1.running_mean"], mean)
    # the batches' own variances leave out how their means differ
    torch.testing.assert_close(state["bn1.running_var"], variance, rtol=0.05, atol=1e-3)
    assert anew["results"]["targets"] != kept["results"]["targets"]


# one that ranks weights and one that changes them; test_every_method.py has all of them prune at once
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, marks=() if method in ("oneshot", "woodfisher") else pytest.mark.slow)
        for method in methods_at_once()
    ],
)
def test_every_method_that_prunes_at_once_reaches_the_target_and_fine_tunes(
    acdc: Acdc, finished: Finished, method: str
) -> None:
    small = {
        "obc": ["images=100", "column_block=16"],
        "synflow": ["rounds=3"],
        "woodfisher": ["samples=20", "fisher_block=50", "damping=0.01"],
    }
    sets = [word for key in small.get(method, []) for word in ("--set", f"sparsity.{key}")]
    finished()
    arguments = ("--method", method, "--target", "0.75", "--out", "pruned", *sets)
    [row] = pruned(acdc, *arguments)["results"]["targets"]
    assert row["sparsity"] == pytest.approx(0.75, abs=1e-4)
    before = zeros("pruned")
    tuned = acdc("train", "--fork", "pruned@1", "--set", "epochs=2", "--set", "optim.lr=0.01", "--out", "runs/tuned")
    assert tuned.exit_code == 0, tuned.output
    assert zeros("runs/tuned") == before
    masks = {name: weight == 0 for name, weight in weights("pruned").items()}
    assert all(not weight[masks[name]].any() for name, weight in weights("runs/tuned").items())
    assert any(not torch.equal(weight, weights("pruned")[name]) for name, weight in weights("runs/tuned").items())


@pytest.mark.slow
def test_several_targets_are_runs_a_table_and_a_curve(acdc: Acdc, finished: Finished) -> None:
    finished()
    shown = acdc("prune", "runs/small-0", "--method", "oneshot", "--target", "0.5,0.9", "--out", "out")
    assert shown.exit_code == 0, shown.output
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    assert [zeros("out/0.9") > zeros("out/0.5"), zeros("out/0.5") > 0] == [True, True]
    lines = Path("out/prune.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["target", "before", "0.5", "0.9"]
    assert {path.name for path in Path("out").iterdir()} == {
        *("0.5", "0.9", "prune.json", "prune.csv", "prune.png", "prune.svg")
    }
    again = acdc("prune", "runs/small-0", "--method", "oneshot", "--target", "0.5,0.9", "--out", "out")
    assert again.exit_code == 2
    assert "out is not an empty folder" in again.stderr


def test_patterns_and_distributions_hold(acdc: Acdc, finished: Finished) -> None:
    finished()
    pruned(acdc, "--method", "oneshot", "--target", "0.5", "--set", "sparsity.pattern=2:4", "--out", "nm")
    layer = weights("nm")["layer2.0.conv2.weight"]
    groups = layer.movedim(1, -1).reshape(-1, 4).count_nonzero(1)
    assert set(groups.tolist()) == {2}
    pruned(acdc, *ONE, "--set", "sparsity.distribution=uniform", "--out", "uniform")
    shares = {round((weight == 0).float().mean().item(), 2) for weight in weights("uniform").values()}
    assert shares == {0.9}


def test_its_run_is_taken_by_other_commands(acdc: Acdc, finished: Finished) -> None:
    finished()
    pruned(acdc, *ONE, "--out", "pruned")
    assert RunDir(Path("pruned")).kept_states() == [1]
    settings = ("epochs=1", "model.weights=pruned/sparse.safetensors", *SAME_MASKS)
    fine_tuning = [word for each in settings for word in ("--set", each)]
    for command in (
        ("analyze", "channels", "pruned"),
        ("verify-run", "pruned"),
        ("export", "pruned", "--format", "packed"),
        ("prune", "pruned", "--method", "oneshot", "--target", "0.95", "--out", "further"),
        ("train", "small.yaml", "--out", "runs/tuned", *fine_tuning),
    ):
        result = acdc(*command)
        assert result.exit_code == 0, (command, result.output)
    masks = {name: weight == 0 for name, weight in weights("pruned").items()}
    assert all(torch.equal(weight == 0, masks[name]) for name, weight in weights("runs/tuned").items())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "oneshot", "--target", "0"), "--target: expected sparsities above 0 and below 1, found 0"),
        (("--method", "oneshot", "--target", "0.5,1"), "and below 1, found 1"),
        (("--method", "oneshot", "--target", "most"), "--target: expected sparsities such as 0.9 or 0.8,0.9, found"),
        (("--method", "oneshot", "--target", "0.5,0.5"), "--target: 0.5,0.5 names a sparsity twice"),
        (("--method", "woodfischer", "--target", "0.5"), "there is no method woodfischer"),
        (("--method", "acdc", "--target", "0.5"), "acdc prunes while it trains; acdc prune takes "),
        ((*ONE, "--set", "sparsity.at_=3"), "sparsity.at_: unknown key; did you mean at?"),
        ((*ONE, "--data", "nowhere"), "nowhere"),
        ((*ONE, "--which", "dense-ema"), "runs/small-0 has no dense-ema model"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    acdc: Acdc, finished: Finished, arguments: tuple[str, ...], said: str
) -> None:
    finished()
    result = acdc("prune", "runs/small-0", *arguments, "--out", "pruned")
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not Path("pruned").exists()


def test_a_strangers_file_needs_a_model_and_data_with_its_classes(acdc: Acdc, finished: Finished, digits: Path) -> None:
    from acdc_cli.models.resnet_cifar import MODELS

    finished()
    torch.save(MODELS["resnet8"](7).state_dict(), "seven.pt")
    asked = ("prune", "seven.pt", *ONE, "--out", "pruned")
    assert "with --model and --data" in acdc(*asked).stderr
    other = acdc(*asked, "--model", "resnet8", "--data", digits)
    assert "is for 7 classes, but the data has 10" in other.stderr
    torch.save(MODELS["resnet8"](10).state_dict(), "ten.pt")
    fits = acdc("prune", "ten.pt", *ONE, "--out", "pruned", "--model", "resnet8", "--data", digits)
    assert fits.exit_code == 0, fits.output
    assert zeros("pruned") > 0
    data = load("pruned/resolved.yaml").data
    assert (data.resolution, data.augment) == (data.val_crop, "pad_crop")


def test_without_a_model_the_methods_are_listed(acdc: Acdc) -> None:
    result = acdc("prune")
    assert result.exit_code == 0
    assert {"oneshot", "snip", "static", "synflow", "woodfisher"} <= {
        row.split()[0] for row in result.stdout.splitlines() if row.strip()
    }
    assert "gmp" not in methods_at_once()
