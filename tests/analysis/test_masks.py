"""Masks over time: overlaps, what is pruned and regrown, and the curves of GMP and RigL, against answers by hand."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command import Acdc
from epoch import recorded
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from acdc_cli.analysis import masks as analysis
from acdc_cli.analysis.base.workspace import UNSAVED
from acdc_cli.analysis.masks import (
    Options,
    Weights,
    exchanged,
    history,
    iou,
    nested,
    nonzero,
    overlap,
    returned,
    updates,
)
from acdc_cli.recipe.load import load
from acdc_cli.runs.run_dir import Kept, RunDir
from acdc_cli.sparsity.exchange import exchange
from acdc_cli.sparsity.methods import gmp, rigl
from acdc_cli.sparsity.prunable import layers
from acdc_cli.sparsity.where import largest
from acdc_cli.training.checkpoint import load_masks, save_masks


def mask(text: str) -> Tensor:
    return torch.tensor([sign == "1" for sign in text])


def test_the_overlap_counts_what_lives_in_both_and_in_either() -> None:
    assert overlap(mask("11100"), mask("10110")) == (2, 4)
    assert iou(2, 4) == 0.5
    assert math.isnan(iou(0, 0))


def test_a_history_of_three_masks_by_hand() -> None:
    past = history(
        [
            {"a.weight": mask("11100"), "b.weight": mask("10")},
            {"a.weight": mask("10110"), "b.weight": mask("10")},
            {"a.weight": mask("11010"), "b.weight": mask("01")},
        ]
    )
    # of a: the first never pruned, the last always, the second and the fourth pruned and back
    assert past.layers == {"a": Weights(5, 1, 1, 2), "b": Weights(2, 0, 0, 1)}
    assert past.all_layers == Weights(7, 1, 1, 3)
    assert past.living == {"a": [3, 3, 3], "b": [1, 1, 1]}
    assert past.overlaps == {"a": [(2, 4), (2, 4)], "b": [(1, 1), (0, 2)]}
    assert past.ious == [3 / 5, 2 / 6]
    assert past.densities == [4 / 7, 4 / 7, 4 / 7]


@given(
    st.integers(1, 6).flatmap(lambda size: st.lists(st.lists(st.booleans(), min_size=size, max_size=size), min_size=1))
)
def test_counts_are_those_of_sets(sequence: list[list[bool]]) -> None:
    living = [{place for place, lives in enumerate(each) if lives} for each in sequence]
    everywhere = set(range(len(sequence[0])))
    back = {
        place
        for place in everywhere
        for first, now in enumerate(living)
        if place not in now and any(place in later for later in living[first + 1 :])
    }
    past = history({"a.weight": torch.tensor(each)} for each in sequence)
    assert past.layers["a"] == Weights(
        len(everywhere), len(set.intersection(*living)), len(everywhere - set.union(*living)), len(back)
    )
    assert past.overlaps["a"] == [(len(a & b), len(a | b)) for a, b in pairwise(living)]


def test_masks_are_let_go_of_as_the_history_goes_on() -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    peak = 0

    def each() -> Iterator[dict[str, Tensor]]:
        nonlocal peak
        for _ in range(10):
            made = {"a.weight": torch.ones(3, dtype=torch.bool)}
            alive.add(made["a.weight"])
            peak = max(peak, len(alive))
            yield made

    history(each())
    assert peak <= 3


def test_a_network_shows_the_masks_of_the_layers_that_are_pruned() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, -3.0], [1e-30, 0.0]]))
    (mask,) = nonzero(layers(model, ["last"])).items()
    assert mask[0] == "0.weight"
    assert mask[1].tolist() == [[False, True], [True, False]]


def test_masks_of_which_one_holds_the_other_overlap_by_the_ratio_of_their_densities() -> None:
    magnitudes = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    kept = [1000, 500, 100, 250]
    past = history({"a.weight": largest(magnitudes, count)} for count in kept)
    # (1 - s2) / (1 - s1) where sparsity rises
    assert nested([1.0, 0.5, 0.1, 0.25]) == [0.5, 0.2, 0.4]
    assert past.ious == nested([count / 1000 for count in kept])
    assert math.isnan(nested([0.0, 0.0])[0])


def test_one_update_of_rigl_leaves_the_overlap_of_its_formula() -> None:
    magnitudes = torch.cat([torch.arange(1.0, 11), torch.full((90,), -1.0)])
    before = magnitudes > 0
    # growth where no weight was dropped
    after = exchange(magnitudes, torch.arange(100.0), kept=7, grown=3)
    assert iou(*overlap(before, after)) == exchanged([0.3]) == pytest.approx((1 - 0.3) / (1 + 0.3), abs=1e-15)


def test_several_updates_leave_the_overlap_of_weights_drawn_at_random() -> None:
    generator = torch.Generator().manual_seed(0)
    living, fresh = torch.arange(20_000), 20_000
    for share in (0.3, 0.2, 0.1):
        count = int(share * 20_000)
        stay = living[torch.randperm(20_000, generator=generator)[count:]]
        # never one that was there before
        living, fresh = torch.cat([stay, torch.arange(fresh, fresh + count)]), fresh + count
    intersection = int((living < 20_000).sum())
    p = 0.7 * 0.8 * 0.9
    assert exchanged([0.3, 0.2, 0.1]) == pytest.approx(p / (2 - p))
    assert intersection / (40_000 - intersection) == pytest.approx(p / (2 - p), abs=0.01)
    assert exchanged([]) == 1


def test_rigl_updates_between_two_epochs_follow_its_cosine() -> None:
    every_epoch = rigl.Config(method="rigl", target=0.9, every_epochs=1)
    # T = 6 of 8 epochs: at the starts of epochs 2 and 3
    assert updates(every_epoch, 1, 3, epochs=8, steps_per_epoch=5) == pytest.approx([0.15 * 1.5, 0.15])
    # the first step and those from T on are none
    assert len(updates(every_epoch, -1, 7, epochs=8, steps_per_epoch=5)) == 5
    # T = 12 steps: at step 3 of steps 2 to 5
    every_third = rigl.Config(method="rigl", target=0.9, every=3, fraction=0.5)
    expected = [0.25 * (1 + math.cos(math.pi / 4))]
    assert updates(every_third, 0, 2, epochs=8, steps_per_epoch=2) == pytest.approx(expected)


def a_run(folder: Path, recipe: str, densities: dict[int, float], kinds: str = "sparse") -> Any:
    """A subject whose run kept masks of 100 weights, nested, after these epochs of 10 steps."""
    run = RunDir(folder)
    records = [recorded(epoch, step=10 * (epoch + 1), phase=kinds) for epoch in range(max(densities) + 1)]
    run.masks.mkdir(parents=True)
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    for epoch, density in densities.items():
        alive = torch.arange(100) < round(100 * density)
        save_masks(run.masks / Kept.name(epoch, kinds), {"a.weight": alive})
    return SimpleNamespace(name=folder.name, run=run, kind=None, recipe=load(recipe))


def pairs(subject: Any, **options: Any) -> list[dict[str, Any]]:
    overlaps = analysis.analyze([subject], Options(**options), UNSAVED).numbers["series"][subject.name]["overlaps"]
    assert isinstance(overlaps, list)
    return overlaps


def test_a_run_of_rigl_is_held_against_its_own_keys(tmp_path: Path) -> None:
    subject = a_run(tmp_path / "run", "demo_rigl", {3: 0.1, 8: 0.1})
    assert subject.recipe.sparsity.every == 31
    # one update in steps 40 to 89, at step 62; T = 120
    share = 0.15 * (1 + math.cos(math.pi * 62 / 120))
    assert pairs(subject)[0]["rigl"] == pytest.approx((1 - share) / (1 + share))


def test_other_runs_are_held_against_the_papers_rigl_and_gmp(tmp_path: Path) -> None:
    subject = a_run(tmp_path / "run", "demo", {3: 0.2, 7: 0.1, 15: 0.1})
    first, second = pairs(subject)
    # T = 12 of 16 epochs, at epochs 4 to 7
    stay = math.prod(1 - 0.15 * (1 + math.cos(math.pi * epoch / 12)) for epoch in (4, 5, 6, 7))
    assert first["rigl"] == pytest.approx(stay / (2 - stay))
    assert first["nested"] == pytest.approx(0.5)
    assert second["nested"] == 1
    # steps at epochs 5, 10 and 12, and none before 5
    at_5 = 1 - 0.9 * (1 - (1 - 5 / 12) ** 3)
    assert first["gmp"] == pytest.approx(at_5)
    assert second["gmp"] == pytest.approx(0.1 / at_5)


def test_a_run_of_gmp_is_held_against_its_own_cubic(tmp_path: Path) -> None:
    subject = a_run(tmp_path / "run", "demo_gmp", {3: 0.5, 15: 0.3}, "ramp")
    config, epochs = subject.recipe.sparsity, subject.recipe.epochs
    assert isinstance(config, gmp.Config)
    assert pairs(subject)[0]["gmp"] == pytest.approx((1 - config.target) / (1 - config.sparsity(3, epochs)))


def test_every_counts_back_from_the_last_mask_and_phase_ends_leave_out_the_others(tmp_path: Path) -> None:
    subject = a_run(tmp_path / "run", "demo", dict.fromkeys([1, 3, 5, 7, 9, 11], 0.1))
    assert [(pair["from"], pair["to"]) for pair in pairs(subject, every=2)] == [(3, 7), (7, 11)]
    records = subject.run.records()
    for record in records:
        record["phase"] = "dense" if record["epoch"] in (2, 6) else "sparse"
    subject.run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [(pair["from"], pair["to"]) for pair in pairs(subject, phase_ends=True)] == [(1, 5), (5, 11)]


def results(acdc: Acdc, *arguments: str | Path) -> dict[str, Any]:
    result = acdc("analyze", "masks", *arguments, "--json")
    assert result.exit_code == 0, result.output
    series: dict[str, Any] = json.loads(result.stdout)["results"]["series"]
    return series


def test_the_command_on_runs(acdc: Acdc, trained: Path, other: Path, tmp_path: Path) -> None:
    series = results(acdc, trained, other, "--out", tmp_path)
    assert list(series) == [trained.name, other.name]
    kept = [load_masks(each.file) for each in RunDir(trained).kept_masks()]
    flat = [torch.cat([each.flatten() for each in masks.values()]) for masks in kept]
    pairs = series[trained.name]["overlaps"]
    assert [(pair["from"], pair["to"]) for pair in pairs] == [(1, 3), (3, 5)]
    for pair, before, after in zip(pairs, flat, flat[1:], strict=False):
        assert pair["iou"] == int((before & after).sum()) / int((before | after).sum())
        assert pair["nested"] == 1
    weights = series[trained.name]["weights"]
    assert weights["never_pruned"] == int((flat[0] & flat[1] & flat[2]).sum())
    names = {file.name for file in tmp_path.iterdir()}
    stem = f"masks-{trained.name}-{other.name}"
    assert names == {
        f"{stem}.json",
        *(f"{stem}{part}.csv" for part in ("", "-weights", "-density")),
        *(f"{stem}{part}.{ending}" for part in ("", "-density") for ending in ("png", "svg")),
    }


def test_the_command_on_files_takes_them_in_turn(acdc: Acdc, trained: Path, other: Path, tmp_path: Path) -> None:
    files = [trained / "sparse.safetensors", other / "sparse.safetensors", trained / "dense.safetensors"]
    (series,) = results(acdc, *files, "--out", tmp_path).values()
    assert [mask["of"] for mask in series["masks"]] == [f"{file.parent.name}/{file.stem}" for file in files]
    first, second = series["overlaps"]
    assert 0 < first["iou"] < 1
    # where nothing is pruned, or what stays zero is: the other mask lies within
    assert second["iou"] == pytest.approx(second["nested"], abs=0.05)
    assert "rigl" not in first


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{run}", "--set", "every=3"], "train with checkpoint.keep_masks_every"),
        (["{run}", "--which", "dense"], "leave out --which"),
        (["{run}/sparse.safetensors"], "name another"),
        (["{run}", "{run}/sparse.safetensors"], "cannot be mixed"),
        (["{run}/sparse.safetensors", "{run}/dense.safetensors", "--set", "phase_ends=true"], "files have no phases"),
    ],
)
def test_what_cannot_be_compared_is_refused(acdc: Acdc, trained: Path, arguments: list[str], told: str) -> None:
    result = acdc("analyze", "masks", *(argument.format(run=trained) for argument in arguments))
    assert (result.exit_code, told in result.output) == (2, True)


def test_files_of_other_layers_are_refused(acdc: Acdc, trained: Path, tmp_path: Path) -> None:
    from acdc_cli.models.resnet_cifar import MODELS
    from acdc_cli.training.checkpoint import read_metadata, save_model

    metadata = read_metadata(trained / "sparse.safetensors")
    assert metadata is not None
    metadata["recipe"]["model"]["name"] = "resnet20"
    save_model(tmp_path / "other.safetensors", MODELS["resnet20"](10), metadata)
    result = acdc("analyze", "masks", trained / "sparse.safetensors", tmp_path / "other.safetensors")
    assert (result.exit_code, "do not prune the same layers" in result.output) == (2, True)


def test_random_regrowth_leaves_the_overlap_of_a_simulation() -> None:
    generator = torch.Generator().manual_seed(0)
    size, live, shares = 100_000, 20_000, [0.3, 0.25, 0.2, 0.1, 0.05] * 2
    first = torch.arange(size) < live
    now = first.clone()
    for share in shares:
        # every live weight drops with the same probability; all masked weights may grow, also those just dropped
        alive = now.nonzero().flatten()
        now[alive[torch.randperm(live, generator=generator)[: int(share * live)]]] = False
        masked = (~now).nonzero().flatten()
        now[masked[torch.randperm(len(masked), generator=generator)[: int(share * live)]]] = True
    assert int(now.sum()) == live
    share = returned(shares, live / size)
    assert iou(*overlap(first, now)) == pytest.approx(share / (2 - share), abs=0.005)
    assert share / (2 - share) > exchanged(shares) + 0.05


def test_random_regrowth_at_the_limits() -> None:
    # one update by hand: 2 of 4 weights, of which 1 drops and 1 of the 3 masked grows: 1 + 1/3 of 2
    assert returned([0.5], 0.5) == pytest.approx(2 / 3)
    share = math.prod(1 - fraction for fraction in (0.3, 0.2))
    assert returned([0.3, 0.2], 1e-12) == pytest.approx(share)
    assert returned([0.3, 0.2], 1.0) == pytest.approx(1)
    assert (returned([], 0.1), returned([0.0], 1.0)) == (1, 1)


def test_rigl_with_random_regrowth_has_the_density_of_each_of_its_layers(tmp_path: Path) -> None:
    subject = a_run(tmp_path / "run", "demo_rigl", {3: 0.1, 8: 0.1})
    for each in subject.run.kept_masks():
        save_masks(each.file, {"a.weight": torch.arange(100) < 10, "b.weight": torch.arange(40) < 30})
    share = 0.15 * (1 + math.cos(math.pi * 62 / 120))
    alive = (10 * returned([share], 0.1) + 30 * returned([share], 0.75)) / 40
    (pair,) = pairs(subject, random_regrowth=True)
    assert pair["rigl_random"] == pytest.approx(alive / (2 - alive))
    other = a_run(tmp_path / "other", "demo", {3: 0.2, 7: 0.1})
    alive = returned([0.15 * (1 + math.cos(math.pi * epoch / 12)) for epoch in (4, 5, 6, 7)], 0.1)
    assert pairs(other, random_regrowth=True)[0]["rigl_random"] == pytest.approx(alive / (2 - alive))
    assert "rigl_random" not in pairs(other)[0]


def test_runs_are_compared_at_the_epochs_that_all_have_kept(tmp_path: Path) -> None:
    first = a_run(tmp_path / "first", "demo", dict.fromkeys([1, 5, 9, 13], 0.1))
    second = a_run(tmp_path / "second", "demo_gmp", dict.fromkeys(range(1, 14, 2), 0.1), "ramp")
    series = analysis.analyze([first, second], Options(common=True, since=3), UNSAVED).numbers["series"]
    for overlaps in (each["overlaps"] for each in series.values()):
        assert [(pair["from"], pair["to"]) for pair in overlaps] == [(5, 9), (9, 13)]


def test_masks_may_be_those_of_the_models_kept(acdc: Acdc, trained: Path, tmp_path: Path) -> None:
    command = (trained, "--out", tmp_path, "--set", "models=true")
    overlaps = results(acdc, *command)[trained.name]["overlaps"]
    # dense in 0, 2 and 4; what a dense phase leaves at zero is no weight
    assert [(pair["from"], pair["to"]) for pair in overlaps] == list(pairwise(range(6)))
    by_file = {each.epoch: nonzero_of(trained, each) for each in RunDir(trained).kept_models()}
    for pair in overlaps:
        assert pair["iou"] == iou(*overlap(by_file[pair["from"]], by_file[pair["to"]]))
    late = results(acdc, *command, "--set", "since=3")[trained.name]["overlaps"]
    assert [pair["from"] for pair in late] == [3, 4]


def nonzero_of(run: Path, kept: Kept) -> Tensor:
    from acdc_cli.jobs.subjects import open_subjects

    (subject,) = open_subjects([run])
    return torch.cat([each.flatten() for each in nonzero(subject.load(kept.file).layers).values()])
