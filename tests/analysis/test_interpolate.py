"""Straight lines between models: hand-worked places, barriers, and numbers that are those of `acdc eval`."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from command import Acdc
from fixed_images import CPU, FixedImages, small_bench
from hypothesis import given
from torch import nn

from acdc_cli.analysis.base.batch_norm import re_estimate
from acdc_cli.analysis.base.evenly import Evenly
from acdc_cli.analysis.base.path import State, between
from acdc_cli.analysis.base.workspace import UNSAVED, Workspace
from acdc_cli.analysis.interpolate import (
    Options,
    _chosen,
    _require_one_architecture,
    _Stop,
    analyze,
    barrier,
    draw,
    estimate,
    missing,
    walk,
)
from acdc_cli.errors import RunError
from acdc_cli.jobs.setup import ReadyModel
from acdc_cli.jobs.subjects import Asked, open_subjects
from acdc_cli.recipe.kinds import measures_of
from acdc_cli.recipe.load import load
from acdc_cli.runs.run_dir import Kept
from acdc_cli.training.evaluate import evaluate
from acdc_cli.training.precision import Precision


def test_floats_lie_on_the_line_and_counts_are_the_nearer_model_s() -> None:
    start = {"weight": torch.tensor([1.0, 0.0]), "num_batches_tracked": torch.tensor(10)}
    end = {"weight": torch.tensor([3.0, 4.0]), "num_batches_tracked": torch.tensor(20)}
    quarter, three_quarters = between(start, end, 0.25), between(start, end, 0.75)
    assert quarter["weight"].tolist() == [1.5, 1.0]
    assert three_quarters["weight"].tolist() == [2.5, 3.0]
    assert (quarter["num_batches_tracked"], three_quarters["num_batches_tracked"]) == (10, 20)
    assert quarter["num_batches_tracked"].dtype == torch.int64


@given(st.integers(0, 1000))
def test_the_ends_of_a_line_are_the_models_to_the_bit(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    start, end = ({"weight": torch.randn(50, generator=generator) ** 5} for _ in range(2))
    assert torch.equal(between(start, end, 0.0)["weight"], start["weight"])
    assert torch.equal(between(start, end, 1.0)["weight"], end["weight"])


def test_a_barrier_is_the_height_above_the_straight_line_between_the_ends() -> None:
    # above the line from 1 to 4: 0, 3 - 2, 3.5 - 3, 0
    assert barrier([1.0, 3.0, 3.5, 4.0]) == (1.0, pytest.approx(1 / 3))
    # the highest loss is an end, and still there is a barrier; and none where the loss sags
    assert barrier([5.0, 4.0, 1.0]) == (1.0, 0.5)
    height, share = barrier([5.0, 1.0, 4.0])
    assert height == 0
    assert math.isnan(share)


def test_re_estimated_statistics_are_the_mean_over_images_of_the_batches_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3, momentum=0.3))
    batches = [torch.randn(4, 3), torch.randn(6, 3) + 2]
    model[1].running_mean.fill_(math.inf)
    model[1].num_batches_tracked.fill_(7)
    re_estimate(model, model, iter(batches))
    mean = (4 * batches[0].mean(0) + 6 * batches[1].mean(0)) / 10
    variance = (4 * batches[0].var(0) + 6 * batches[1].var(0)) / 10
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)
    assert model[1].num_batches_tracked == 2
    assert model[1].momentum == 0.3
    assert not any(module.training for module in model.modules())


def float_bench(seed: int) -> ReadyModel:
    """In float32, as models are."""
    bench = small_bench(seed)
    bench.model.float()
    forward = lambda images: bench.model(images.float() / 128 - 1)  # noqa: E731
    return ReadyModel(bench.model, forward, bench.layers, bench.task, Precision("fp32", CPU), CPU)


def state_of(bench: ReadyModel) -> State:
    return {name: tensor.clone() for name, tensor in bench.model.state_dict().items()}


def settle(bench: ReadyModel, images: FixedImages) -> dict[str, Any]:
    return {"interpolated": lambda: None, "re-estimated": lambda: estimate(bench, Evenly(images, 4))}


def test_a_path_goes_through_its_models_and_judges_each_as_validation_does() -> None:
    benches = [float_bench(seed) for seed in (1, 2, 3)]
    states = [state_of(bench) for bench in benches]
    images, others = FixedImages(9, 4), FixedImages(12, 5)
    rows = walk(
        float_bench(0),
        [lambda state=state: state for state in states],  # type: ignore[misc]
        {"val": images},
        settle(bench := float_bench(0), others) | {"re-estimated": lambda: None},
        points=3,
    )
    assert [row["position"] for row in rows if row["statistics"] == "interpolated"] == [each / 4 for each in range(9)]
    for number, (bench, state) in enumerate(zip(benches, states, strict=True)):
        bench.model.load_state_dict(state)
        expected = evaluate(bench.model, bench.forward, images, bench.task, bench.precision)
        (row,) = (row for row in rows if row["position"] == number and row["statistics"] == "interpolated")
        assert {**row, "samples": 9} == {"position": number, "split": "val", "statistics": "interpolated", **expected}
    (middle,) = (row for row in rows if row["position"] == 1.5 and row["statistics"] == "interpolated")
    bench.model.load_state_dict({name: (a + b) / 2 for (name, a), b in zip(states[1].items(), states[2].values())})  # noqa: B905
    expected = evaluate(bench.model, bench.forward, images, bench.task, bench.precision)
    assert middle["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_statistics_are_estimated_again_for_every_model_from_nothing() -> None:
    first, second, judge = float_bench(1), float_bench(2), float_bench(0)
    images, others = FixedImages(9, 4), FixedImages(12, 5)
    ends = [lambda: state_of(first), lambda: state_of(second)]
    rows = walk(judge, ends, {"val": images}, settle(judge, others), points=1)
    backwards = walk(judge, ends, {"val": images}, dict(reversed(settle(judge, others).items())), points=1)
    assert sorted(map(str, backwards)) == sorted(map(str, rows))
    losses = {row["position"]: row["loss"] for row in rows if row["statistics"] == "re-estimated"}
    plain = {row["position"]: row["loss"] for row in rows if row["statistics"] == "interpolated"}
    for place, bench in ((0, first), (1, second)):
        estimate(bench, Evenly(others, 4))
        loss = evaluate(bench.model, bench.forward, images, bench.task, bench.precision)["loss"]
        assert losses[place] == loss != plain[place]


class Killed(Exception):  # noqa: N818
    """As by Ctrl-C, which would end the tests themselves."""


class Interrupted:
    """Images that are drawn a given number of times, and then no more."""

    def __init__(self, images: FixedImages, epochs: int) -> None:
        self._images, self.left = images, epochs

    def __getattr__(self, name: str) -> Any:
        if name == "epoch":
            self.left -= 1
            if self.left < 0:
                raise Killed
        return getattr(self._images, name)


def test_a_path_that_was_broken_off_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    judge, images, others = float_bench(0), FixedImages(9, 4), FixedImages(12, 5)
    ends = [lambda: state_of(float_bench(1)), lambda: state_of(float_bench(2))]

    def walked(workspace: Workspace, epochs: int) -> list[dict[str, Any]]:
        interrupted: Any = Interrupted(images, epochs)
        return walk(judge, ends, {"val": interrupted}, settle(judge, others), points=2, workspace=workspace)

    whole = walked(UNSAVED, 8)
    for epochs in range(8):
        workspace = Workspace(tmp_path / str(epochs), "the same")
        with pytest.raises(Killed):
            walked(workspace, epochs)
        assert walked(workspace, 8 - epochs) == whole


def few(*more: str) -> list[str]:
    settings = ("points=1", "images=20", "bn_images=20", "data.workers=0", "device=cpu", *more)
    return [part for setting in settings for part in ("--set", setting)]


def flat(text: str) -> str:
    return " ".join(text.split())


def test_the_ends_of_a_path_have_the_numbers_of_eval(acdc: Acdc, trained: Path, other: Path, tmp_path: Path) -> None:
    result = acdc("analyze", "interpolate", trained, other, "--out", tmp_path, "--json", *few("splits=[val]"))
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)["results"]
    assert results["path"] == ["small-0", "small-1"]
    for position, run in enumerate((trained, other)):
        judged = json.loads(acdc("eval", "--checkpoint", run, "--json", "--set", "data.workers=0").stdout)
        plain, estimated = (row for row in results["points"] if row["position"] == position)
        for key in ("loss", "entropy", "top1", "top5"):
            assert plain[key] == judged[key], key
        assert estimated["loss"] != judged["loss"]
    assert [each["height"] >= 0 for each in results["barriers"]] == [True, True]
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".csv", ".png", ".svg"}


def test_one_run_is_a_path_through_its_sparse_models(acdc: Acdc, trained: Path, tmp_path: Path) -> None:
    arguments = few("splits=[train]", "statistics=[interpolated]")
    result = acdc("analyze", "interpolate", trained, "--out", tmp_path, "--json", *arguments)
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)["results"]
    assert results["path"] == ["epoch 1, sparse", "epoch 3, sparse", "epoch 5, sparse"]
    assert results["images"] == {"train": 20}
    assert [row["position"] for row in results["points"]] == [0, 0.5, 1, 1.5, 2]
    last = acdc("eval", "--checkpoint", trained, "--split", "train", "--json", "--set", "data.images=20")
    assert results["points"][-1]["loss"] == json.loads(last.stdout)["loss"]


@pytest.mark.parametrize("splits", [["val"], ["train", "val"]])
def test_the_legend_fits_into_the_figure(splits: list[str]) -> None:
    place = {"loss": 1.0, "top1": 0.5}
    rows = [
        {"position": position, "split": split, "statistics": statistics, **place}
        for position in (0.0, 0.5, 1.0)
        for statistics in ("interpolated", "re-estimated")
        for split in splits
    ]
    figure = draw(["a", "b"], rows, measures_of("multiclass").headline)
    figure.canvas.draw()
    (legend,) = figure.legends
    shown = legend.get_window_extent()
    assert (shown.x0 >= 0, shown.x1 <= figure.bbox.width) == (True, True)


def test_several_runs_need_not_keep_models_and_one_takes_all_kinds_if_asked() -> None:
    kept = [Kept(epoch, kind, Path(str(epoch))) for epoch, kind in enumerate(("dense", "sparse", "dense", "sparse"))]
    run: Any = SimpleNamespace(name="a", models=kept[:1])
    assert missing([run], Options())[0].startswith("a: 1 checkpoints were saved, and a path needs two; ")
    assert missing([run, run], Options()) == []
    assert [each.epoch for each in _chosen(kept, None, Options())] == [1, 3]
    assert _chosen(kept, None, Options(all_kinds=True)) == kept


def test_models_of_different_shapes_are_told_by_their_first_tensors() -> None:
    class Stop(_Stop):
        def state(self) -> State:
            return {"fc.weight": torch.zeros(len(self.name), 2), "fc.bias": torch.zeros(3)}

    subjects: list[Any] = [SimpleNamespace(name=name, recipe=load("demo")) for name in ("a", "bb")]
    with pytest.raises(RunError, match=r"a and bb differ in the shape of fc\.weight: models of different"):
        _require_one_architecture([Stop(subject.name, subject) for subject in subjects])


def test_without_batch_norm_nothing_is_re_estimated(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acdc_cli.analysis.interpolate.tracking", lambda model: [])
    subjects = open_subjects([trained], Asked(overrides=("data.workers=0", "data.val_images=10")))
    findings = analyze(subjects, Options(points=1, splits=["val"], statistics=["re-estimated"]), UNSAVED)
    assert {row["statistics"] for row in findings.numbers["points"]} == {"interpolated"}
    assert "has no batch norm statistics to re-estimate" in capsys.readouterr().err


@pytest.fixture
def without_kept(trained: Path, tmp_path: Path) -> Path:
    bare = tmp_path / "bare"
    shutil.copytree(trained, bare, ignore=shutil.ignore_patterns("epoch-*"))
    return bare


def test_what_is_no_path_is_refused(acdc: Acdc, trained: Path, other: Path, without_kept: Path) -> None:
    def said(*arguments: str | Path) -> str:
        result = acdc("analyze", "interpolate", *arguments, "--out", without_kept)
        assert result.exit_code == 2, result.output
        return flat(result.stderr)

    assert "name at least two" in said(trained / "sparse.safetensors")
    assert "checkpoint.keep_phases=true" in said(without_kept)
    assert "name one run" in said(trained, other, *few("all_kinds=true"))
    assert "leave one of them out" in said(trained, "--which", "dense", *few("all_kinds=true"))


def test_models_that_compute_different_things_have_no_line(
    acdc: Acdc, trained: Path, other: Path, without_kept: Path
) -> None:
    recipe = (without_kept / "resolved.yaml").read_text()
    changes = {"blurpool: false": "blurpool: true", "val_crop: 5": "val_crop: 4", "name: resnet8": "name: resnet20"}
    for old, new in changes.items():
        assert old in recipe
        (without_kept / "resolved.yaml").write_text(recipe.replace(old, new))
        result = acdc("analyze", "interpolate", trained, without_kept, "--out", without_kept, *few())
        assert result.exit_code == 2
        assert "cannot be interpolated" in flat(result.stderr), result.stderr
        assert new.split(":")[0] in flat(result.stderr)
