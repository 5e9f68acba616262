"""The average of the weights: its arithmetic, its masks, and that the model knows nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mini_trainer import MiniRun, StopAtCall
from safetensors.torch import load_file
from torch import Tensor, nn

from acdc_cli.errors import Stopped
from acdc_cli.recipe.blocks.run import EMABlock
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.sparsity.masked import MaskedParameters
from acdc_cli.training import checkpoint
from acdc_cli.training.ema import Average

PHASES = {"warmup_epochs": 1, "dense_epochs": 1, "sparse_epochs": 1, "last_dense_epochs": 1, "last_sparse_epochs": 1}
ACDC: dict[str, Any] = {"method": "acdc", "target": 0.9, **PHASES}
RIGL = {"method": "rigl", "target": 0.8, "distribution": "erk", "every": 2}
STR = {"method": "str", "s_init": -5.0, "s_decay": 0.5}
LOTTERY = {"method": "lottery", "target": 0.75, "prune": 0.5, "rewind_to": 0}
METHODS = [ACDC, {"method": "dense"}, RIGL, STR, LOTTERY]
EMA = EMABlock(decay=0.75)

every_method = pytest.mark.parametrize("sparsity", METHODS, ids=lambda block: block["method"])


def line(weights: list[float]) -> tuple[nn.Linear, MaskedParameters]:
    model = nn.Linear(len(weights), 1, bias=False)
    move(model, weights)
    return model, MaskedParameters({"weight": model.weight})


def move(model: nn.Linear, weights: list[float]) -> None:
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights]))


def seen(average: Average, model: nn.Module) -> list[float]:
    """The average's weights."""
    with average.installed():
        return [value for parameter in model.parameters() for value in parameter.detach().reshape(-1).tolist()]


def bits(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone().contiguous().view(-1).view(torch.uint8) for name, value in tensors.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_average_begins_as_the_weights_and_follows_them_as_worked_by_hand() -> None:
    model, masked = line([1.0, 8.0])
    average = Average(model, masked, decay=0.75)
    assert not average.begun
    average.update(0)
    assert seen(average, model) == [1.0, 8.0]
    move(model, [5.0, 0.0])
    average.update(0)
    assert seen(average, model) == [2.0, 6.0]  # 3/4 · 1 + 1/4 · 5, 3/4 · 8
    average.update(1)  # the optimiser skipped a step: the average goes on towards the weights that stayed
    assert seen(average, model) == [2.75, 4.5]
    average.restart()
    average.update(1)
    assert seen(average, model) == [5.0, 0.0]


def test_the_average_begins_with_its_epoch() -> None:
    model, masked = line([1.0])
    average = Average(model, masked, decay=0.5, begin=2)
    average.update(1)
    assert not average.begun
    move(model, [3.0])
    average.update(2)
    assert seen(average, model) == [3.0]


def test_masked_weights_are_zero_in_the_average_and_come_back_as_zeros() -> None:
    model, masked = line([4.0, 4.0])
    average = Average(model, masked, decay=0.5)
    average.update(0)
    masked.set({"weight": torch.tensor([[True, False]])})
    assert seen(average, model) == [4.0, 0.0], "judged before its next update"
    average.update(1)
    assert seen(average, model) == [4.0, 0.0]
    masked.fill()
    assert seen(average, model) == [4.0, 0.0]
    move(model, [4.0, 1.0])
    average.update(2)
    assert seen(average, model) == [4.0, 0.5]


def test_running_statistics_are_averaged_and_the_count_of_batches_is_the_models() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    average = Average(model, MaskedParameters({"0.weight": model[0].weight}), decay=0.75)
    average.update(0)
    model[1].running_mean.fill_(4.0)
    model[1].num_batches_tracked.fill_(9)
    average.update(0)
    assert [tensor.item() for tensor in average.statistics] == [1.0, 1.0]  # mean 3/4 · 0 + 1/4 · 4, variance 1
    with average.installed():
        assert model[1].running_mean.item() == 1.0
        assert model[1].num_batches_tracked.item() == 9


@given(
    st.floats(0, 0.999),
    st.lists(st.tuples(st.integers(0, 2**31), st.sampled_from(["step", "mask", "fill"])), min_size=1, max_size=12),
)
def test_it_is_the_sum_that_its_equation_says(decay: float, course: list[tuple[int, str]]) -> None:
    model, masked = line([0.0] * 6)
    average = Average(model, masked, decay)
    expected: list[float] = []
    alive = [True] * 6
    for seed, what in course:
        generator = torch.Generator().manual_seed(seed)
        if what == "mask":
            alive = (torch.rand(6, generator=generator) < 0.5).tolist()
            masked.set({"weight": torch.tensor([alive])})
        elif what == "fill":
            alive = [True] * 6
            masked.fill()
        move(model, torch.randn(6, generator=generator).tolist())
        masked.apply()
        average.update(0)
        now = model.weight.detach().view(-1).tolist()
        before = expected or now
        expected = [
            (decay * a + (1 - decay) * w) if lives else 0.0 for a, w, lives in zip(before, now, alive, strict=True)
        ]
    averaged = seen(average, model)
    assert averaged == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert [value == 0.0 for value, lives in zip(averaged, alive, strict=True) if not lives] == [True] * alive.count(
        False
    )


def test_the_model_is_itself_again_to_the_bit_whatever_happens_within() -> None:
    model, masked = line([0.1, -0.0, float("nan"), 1e-45])
    average = Average(model, masked, decay=0.5)
    average.update(0)
    move(model, [float("inf"), -0.0, 0.3, -1e-45])
    place, before = model.weight.data_ptr(), bits(dict(model.named_parameters()))
    with average.installed():
        assert not same(before, bits(dict(model.named_parameters())))
        assert model.weight.data_ptr() == place, "compiled graphs keep their storage"
        with average.set_aside():
            assert same(before, bits(dict(model.named_parameters())))
        assert not same(before, bits(dict(model.named_parameters())))
    assert same(before, bits(dict(model.named_parameters())))
    with pytest.raises(KeyError), average.installed():
        raise KeyError
    assert same(before, bits(dict(model.named_parameters())))


def test_a_weight_that_two_modules_share_is_averaged_once() -> None:
    first = nn.Embedding(2, 2)
    model = nn.Sequential(first, nn.Linear(2, 2, bias=False))
    model[1].weight = first.weight
    masked = MaskedParameters({"1.weight": model[1].weight})
    average = Average(model, masked, decay=0.5)
    average.update(0)
    mask = torch.tensor([[True, False], [False, True]])
    masked.set({"1.weight": mask})
    average.update(0)
    with average.installed():
        assert not model[1].weight[~mask].any()
        assert model[1].weight[mask].all()
    assert len(average.state_dict()["average"]) == 1


def ema_keys(record: dict[str, Any]) -> set[str]:
    return {key for key in record if key.startswith("ema_")}


def untimed(run: RunDir, drop: str = "never") -> list[dict[str, Any]]:
    times = ("seconds", "images_per_second")
    return [
        {key: value for key, value in record.items() if key not in times and not key.startswith(drop)}
        for record in run.records()
    ]


@every_method
def test_training_is_the_same_with_and_without_an_average(tmp_path: Path, sparsity: dict[str, Any]) -> None:
    plain = MiniRun(tmp_path / "plain", 6, sparsity)
    plain.fit()
    averaged = MiniRun(tmp_path / "averaged", 6, sparsity, ema=EMA)
    averaged.fit()
    assert same(bits(plain.model.state_dict()), bits(averaged.model.state_dict()))
    assert untimed(plain.directory) == untimed(averaged.directory, drop="ema_")
    keys = {"ema_val_loss", "ema_top1", "ema_top5", "ema_entropy", "ema_sparsity", "ema_sparsity_all"}
    assert [ema_keys(record) for record in averaged.directory.records()] == [keys] * 6


@every_method
def test_the_average_is_as_sparse_as_the_model_at_every_step(tmp_path: Path, sparsity: dict[str, Any]) -> None:
    run = MiniRun(tmp_path / "run", 6, sparsity, ema=EMA)
    assert run.average is not None
    checked = 0
    update = run.average.update

    def watched(epoch: int) -> None:
        nonlocal checked
        update(epoch)
        for name, mask in run.sparsifier.masked.masks.items():
            assert not run.average._pruned[name][~mask].any()
            checked += int((~mask).sum())

    run.average.update = watched  # type: ignore[method-assign]
    run.fit()
    last = run.directory.records()[-1]
    if sparsity["method"] == "str":
        # its masks are those of the end
        assert not checked
    if sparsity["method"] != "dense":
        assert last["ema_sparsity"] == last["sparsity"] > 0.4
    assert last["ema_top1"] >= 0


def test_a_sparse_phases_average_has_exactly_the_models_sparsity(tmp_path: Path) -> None:
    run = MiniRun(tmp_path / "run", 6, ACDC, ema=EMA)
    summary = run.fit()
    for record in run.directory.records():
        if record["phase"] == "sparse":
            assert record["ema_sparsity"] == record["sparsity"] == pytest.approx(729 / 810)
    assert summary["sparse"]["ema_top1"] == run.directory.records()[5]["ema_top1"]


def test_the_average_is_saved_beside_the_pair_as_it_was_judged(tmp_path: Path) -> None:
    run = MiniRun(tmp_path / "run", 6, ACDC, ema=EMA)
    run.fit()
    for kind, epoch in (("sparse", 5), ("dense", 4)):
        saved, model = (load_file(run.directory.model_file(name)) for name in (f"{kind}-ema", kind))
        assert saved.keys() == model.keys()
        assert not same(bits(saved), bits(model))
        assert torch.equal(saved["1.num_batches_tracked"], model["1.num_batches_tracked"])
        metadata = checkpoint.read_metadata(run.directory.model_file(f"{kind}-ema"))
        assert metadata is not None
        record = run.directory.records()[epoch]
        assert metadata["metrics"]["top1"] == record["ema_top1"]
        assert metadata["metrics"]["sparsity"] == record["ema_sparsity"]
        other = MiniRun(tmp_path / kind, 6, ACDC)
        other.model.load_state_dict(saved)
        judged = other.trainer._validation.of_model()
        record = run.directory.records()[epoch]
        assert (judged["loss"], judged["top1"]) == (record["ema_val_loss"], record["ema_top1"])
    masks = checkpoint.load_masks(run.directory.masks / "epoch-0005-sparse.safetensors")
    sparse = load_file(run.directory.model_file("sparse-ema"))
    assert all(torch.equal(sparse[name] != 0, mask) for name, mask in masks.items())


def test_before_it_begins_nothing_is_judged_or_saved(tmp_path: Path) -> None:
    run = MiniRun(tmp_path / "run", 6, ACDC, ema=EMABlock(decay=0.75, begin="84%"))
    run.fit()
    assert [bool(ema_keys(record)) for record in run.directory.records()] == [False] * 5 + [True]
    assert run.directory.model_file("sparse-ema").exists()
    assert not run.directory.model_file("dense-ema").exists()


def test_an_average_begins_anew_where_the_model_is_set_back(tmp_path: Path) -> None:
    run = MiniRun(tmp_path / "run", 6, LOTTERY, ema=EMABlock(decay=0.999))
    assert run.average is not None
    begun: list[int] = []
    update = run.average.update

    def watched(epoch: int) -> None:
        if not run.average.begun:
            begun.append(epoch)
        update(epoch)

    run.average.update = watched  # type: ignore[method-assign]
    run.fit()
    assert begun == [0, *(phase.start for phase in run.sparsifier.phases.phases if phase.start)]


@pytest.mark.parametrize(
    ("sparsity", "begin"),
    [
        # an average that begins later has also what comes before it to resume
        pytest.param(
            block,
            begin,
            id=f"{block['method']}-{begin}",
            marks=pytest.mark.slow if begin == 0 or number > 2 else (),
        )
        for number, block in enumerate(METHODS)
        for begin in (0, 3)
    ],
)
def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_average(
    tmp_path: Path, sparsity: dict[str, Any], begin: int
) -> None:
    ema = EMABlock(decay=0.75, begin=begin)
    whole = MiniRun(tmp_path / "whole", 6, sparsity, ema=ema)
    whole.fit()
    # three steps, three validation batches of the model and three of its average: each is stopped at in its turn
    resumed = MiniRun(tmp_path / "cut", 6, sparsity, stop_asked=StopAtCall(4), ema=ema)
    stops = 0
    while True:
        try:
            resumed.fit()
            break
        except Stopped:
            stops += 1
        run = RunDir(tmp_path / "cut")
        state = checkpoint.load_state(run.checkpoints)
        assert state is not None
        run.rewind_metrics(state["epoch"])
        torch.manual_seed(99)
        # more than a validation of both, or it would never come to its end
        resumed = MiniRun(tmp_path / "cut", 6, sparsity, stop_asked=StopAtCall(7 + stops % 5), ema=ema)
        resumed.trainer.load_state_dict(state)
    assert stops > 4
    assert untimed(whole.directory) == untimed(resumed.directory)
    one, other = whole.trainer.state_dict(), resumed.trainer.state_dict()
    assert one["ema"]["begun"]
    assert same(bits(one["ema"]["average"]), bits(other["ema"]["average"]))
    assert same(bits(one["model"]), bits(other["model"]))
    for path in sorted((tmp_path / "whole").glob("*.safetensors")):
        assert same(bits(load_file(path)), bits(load_file(tmp_path / "cut" / path.name))), path.name


def test_what_is_saved_while_the_average_is_judged_is_the_model_itself(tmp_path: Path) -> None:
    # three steps and three validation batches, then the first of the average's
    run = MiniRun(tmp_path / "run", 1, {"method": "dense"}, ema=EMA, stop_asked=StopAtCall(7))
    with pytest.raises(Stopped):
        run.fit()
    state = checkpoint.load_state(run.directory.checkpoints)
    assert state is not None
    plain = MiniRun(tmp_path / "plain", 1, {"method": "dense"}, stop_asked=StopAtCall(6))
    with pytest.raises(Stopped):
        plain.fit()
    assert same(bits(state["model"]), bits(plain.model.state_dict()))
    assert same(bits(state["model"]), bits(run.model.state_dict()))
    assert not torch.equal(state["ema"]["average"]["0.weight"], state["model"]["0.weight"])
