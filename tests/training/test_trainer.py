from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import AfterAsking, Bench

from acdc_cli.data.batches import Batch
from acdc_cli.errors import DataError, RunError, Stopped
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.training import checkpoint
from acdc_cli.training.running import Running

ACDC = {
    "method": "acdc",
    "target": 0.9,
    "warmup_epochs": 1,
    "dense_epochs": 1,
    "sparse_epochs": 1,
    "last_dense_epochs": 1,
    "last_sparse_epochs": 1,
}
DENSE = {"method": "dense"}
GMP = {"method": "gmp", "target": 0.8, "every_epochs": 1}
P1 = {"method": "acdc", "target": 0.9, "warmup_epochs": 10}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def untimed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: record[key] for key in record if key not in ("seconds", "images_per_second")} for record in records]


def test_after_a_hundred_epochs_of_p1_exactly_its_epochs_are_sparse(folder: Path) -> None:
    bench = Bench(folder, 100, P1, checkpoint_every=100)
    bench.fit()
    sparse = {record["epoch"] for record in bench.run.records() if record["phase"] == "sparse"}
    listed = [*range(10, 15), *range(20, 25), *range(30, 35), *range(40, 45), *range(50, 55), *range(60, 65)]
    assert sparse == {*listed, *range(70, 75), *range(85, 100)}
    # 162 + 648 weights, of which round(0.1 · 810) = 81 are kept
    for record in bench.run.records():
        if record["epoch"] in sparse:
            assert record["sparsity"] == pytest.approx(729 / 810)


def test_the_pair_is_the_end_of_the_last_dense_and_of_the_last_sparse_phase(folder: Path) -> None:
    bench = Bench(folder, 6, ACDC)
    summary = bench.fit()
    assert summary["sparse"]["epoch"] == 5
    assert summary["dense"]["epoch"] == 4
    dense = checkpoint.read_metadata(folder / "dense.safetensors")
    assert dense is not None
    assert dense["metrics"] == bench.run.records()[4]
    masks = sorted(path.name for path in bench.run.masks.iterdir())
    assert masks == [f"epoch-000{epoch}-sparse.safetensors" for epoch in (1, 3, 5)]


def test_every_record_has_what_the_epoch_was(folder: Path) -> None:
    bench = Bench(folder, 6, ACDC)
    bench.fit()
    record = bench.run.records()[5]
    assert record["step"] == 18
    assert record["lr"] == pytest.approx(0.05 / 18)
    assert record["resolution"] == 8
    assert record["sparsity"] == record["sparsity_all"] == pytest.approx(729 / 810)
    zeros = record["layers"]["0"] * 162 + record["layers"]["6"] * 648
    assert zeros == pytest.approx(729)
    expected = {"epoch", "step", "phase", "lr", "resolution", "train_loss", "val_loss", "top1", "top5", "entropy"}
    assert expected | {"sparsity", "sparsity_all", "layers", "images_per_second", "seconds"} <= record.keys()


def ends_like(whole: Bench, other: Bench) -> None:
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    for name, mask in whole.sparsifier.masked.masks.items():
        assert torch.equal(mask, other.sparsifier.masked.masks[name]), name
    assert untimed(whole.run.records()) == untimed(other.run.records())


def gone_on(folder: Path, sparsity: dict[str, Any], adamw: bool, **more: Any) -> Bench:
    """A new process's trainer, its generators elsewhere, with the newest state."""
    run = RunDir(folder)
    state = checkpoint.load_state(run.checkpoints)
    assert state is not None
    run.rewind_metrics(state["epoch"])
    torch.manual_seed(99)
    resumed = Bench(folder, 6, sparsity, adamw, **more)
    torch.manual_seed(98)
    resumed.trainer.load_state_dict(state)
    return resumed


@pytest.mark.parametrize("sparsity", [ACDC, DENSE, GMP], ids=lambda block: block["method"])
@pytest.mark.parametrize(("stop", "adamw"), [(1, False), (2, False), (4, False), (5, False), (3, True)])
def test_a_resumed_run_ends_bit_identical(tmp_path: Path, sparsity: dict[str, Any], stop: int, adamw: bool) -> None:
    whole = Bench(tmp_path / "whole", 6, sparsity, adamw)
    whole.fit()

    first = Bench(tmp_path / "cut", 6, sparsity, adamw)
    original = checkpoint.save_state

    class KilledError(Exception):
        pass

    def killed(path: Path, state: dict[str, Any]) -> None:
        original(path, state)
        if state["epoch"] == stop:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_state", killed)
        with pytest.raises(KilledError):
            first.fit()

    resumed = gone_on(tmp_path / "cut", sparsity, adamw)
    resumed.fit()
    ends_like(whole, resumed)


@pytest.mark.parametrize("sparsity", [ACDC, DENSE, GMP], ids=lambda block: block["method"])
@pytest.mark.parametrize("adamw", [False, True])
def test_a_run_that_is_stopped_again_and_again_ends_bit_identical(
    tmp_path: Path, sparsity: dict[str, Any], adamw: bool
) -> None:
    whole = Bench(tmp_path / "whole", 6, sparsity, adamw)
    whole.fit()
    # three steps and three validation batches an epoch: every fifth is a step of another epoch, or a batch
    resumed = Bench(tmp_path / "cut", 6, sparsity, adamw, AfterAsking(5))
    stops = []
    while True:
        try:
            resumed.fit()
            break
        except Stopped as stopped:
            stops.append(str(stopped))
        resumed = gone_on(tmp_path / "cut", sparsity, adamw, stop_asked=AfterAsking(5))
    assert "stopped and saved after step 2 of 3 of epoch 1; go on with: acdc train" in stops[1]
    # one that was stopped in its validation validates again: 36 askings are not 7 stops of 5
    assert len(stops) >= 7
    ends_like(whole, resumed)
    assert resumed.trainer._seconds > 0


@pytest.mark.parametrize("asked", [True, False])
def test_images_that_stop_coming_because_the_end_was_asked_for_are_no_fault_of_the_data(
    folder: Path, asked: bool
) -> None:
    ended: list[bool] = []
    bench = Bench(folder, 1, DENSE, stop_asked=lambda: asked and bool(ended))
    whole = bench.train.epoch

    @contextmanager
    def dying(*arguments: Any) -> Iterator[Iterator[Batch]]:
        def batches() -> Iterator[Batch]:
            with whole(*arguments) as given:
                yield next(given)
                ended.append(True)
                raise DataError("a process that draws images ended")

        yield batches()

    bench.train.epoch = dying  # type: ignore[method-assign]
    with pytest.raises(Stopped if asked else DataError):
        bench.fit()
    state = checkpoint.load_state(bench.run.checkpoints)
    assert (state is not None and state["step"] == 1) == asked


def test_minutes_after_the_last_checkpoint_one_is_written_within_the_epoch(folder: Path) -> None:
    bench = Bench(folder, 1, DENSE, checkpoint_minutes=1e-9)
    saved: list[tuple[int, int]] = []
    original = checkpoint.save_state

    def noted(path: Path, state: dict[str, Any]) -> None:
        saved.append((state["epoch"], state["step"]))
        original(path, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_state", noted)
        bench.fit()
    # after each step, after each validation batch, and at the end
    assert saved == [(0, 1), (0, 2), (0, 3), (0, 3), (0, 3), (0, 3), (1, 0)]


def test_a_checkpoint_is_written_at_every_phase_end(folder: Path) -> None:
    bench = Bench(folder, 6, ACDC, checkpoint_every=100)
    saved: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_state", lambda path, state: saved.append(state["epoch"]))
        bench.fit()
    assert saved == [phase.end for phase in bench.sparsifier.phases.phases]


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    def trained(accumulate: int) -> list[torch.Tensor]:
        bench = Bench(tmp_path / str(accumulate), 2, DENSE, accumulate=accumulate)
        for module in bench.model:
            # batch norm and dropout see the parts, not the batch
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.Dropout):
                module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
                module.training = False
        bench.fit()
        return [parameter.detach() for parameter in bench.model.parameters()]

    for whole, parts in zip(trained(1), trained(3), strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_clipped_to_its_norm(folder: Path) -> None:
    bench = Bench(folder, 1, DENSE, clip_norm=1e-9)
    before = [parameter.detach().clone() for parameter in bench.model.parameters()]
    for group in bench.optimizer.param_groups:
        group["weight_decay"] = 0.0
    bench.fit()
    moved = max((p.detach() - b).abs().max().item() for p, b in zip(bench.model.parameters(), before, strict=True))
    assert 0 <= moved < 1e-7


def poisoned(bench: Bench, since: float, until: float = math.inf) -> None:
    """Between these times, in epochs, the loss is no number."""
    healthy = bench.model[6].bias.detach().clone()

    def rate(progress: float) -> float:
        with torch.no_grad():
            if since <= progress < until:
                bench.model[6].bias.fill_(float("nan"))
            elif not bench.model[6].bias.isfinite().all():
                bench.model[6].bias.copy_(healthy)
        return 0.01

    object.__setattr__(bench.trainer._settings, "learning_rate", rate)


def test_a_loss_that_stays_no_number_stops_the_run_and_keeps_the_checkpoint(folder: Path) -> None:
    bench = Bench(folder, 3, DENSE, nan_patience=2, checkpoint_minutes=1e-9)
    poisoned(bench, since=1)
    said = r"no number for 2 steps in a row: epoch 1, step 2 of 3, learning rate 0.01, last finite loss \d.*is kept"
    with pytest.raises(RunError, match=said):
        bench.fit()
    state = checkpoint.load_state(bench.run.checkpoints)
    assert state is not None
    assert (state["epoch"], state["step"]) == (1, 0)
    assert all(value.isfinite().all() for value in state["model"].values())


def test_epochs_shorter_than_the_patience_leave_the_good_checkpoint_too(folder: Path) -> None:
    bench = Bench(folder, 4, DENSE, nan_patience=8)
    poisoned(bench, since=1)
    with pytest.raises(RunError, match="no number for 9 steps in a row"):
        bench.fit()
    state = checkpoint.load_state(bench.run.checkpoints)
    assert state is not None
    assert (state["epoch"], state["step"]) == (1, 0)


def test_a_few_bad_losses_are_left_out_of_the_mean_and_end_nothing(folder: Path) -> None:
    bench = Bench(folder, 2, DENSE, nan_patience=2)
    poisoned(bench, since=0.3, until=0.6)
    bench.fit()
    first, second = bench.run.records()
    assert math.isfinite(first["train_loss"])
    assert math.isfinite(second["train_loss"])
    assert first["train_loss"] > 0


def test_losses_are_summed_over_the_steps_that_have_one() -> None:
    running = Running()
    for loss in (1.0, float("nan"), float("inf"), 4.0, float("nan")):
        running.add(torch.tensor(loss), 2, 0.1)
    found = running.look()
    assert (found.mean, found.bad, found.most_bad, found.last_finite) == (2.5, 1, 2, 4.0)
    assert running.images == 10
    again = Running()
    again.load_state_dict(running.state_dict())
    assert again.look() == found
    again.begin()
    again.add(torch.tensor(float("nan")), 2, 0.1)
    # the row of bad ones crossed the epochs
    assert again.look().most_bad == again.look().bad == 2
    assert math.isnan(again.look().mean)


def test_out_of_memory_names_the_batch_that_was_tried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, 1, DENSE, accumulate=2)

    def full(images: torch.Tensor) -> torch.Tensor:
        # more than any machine has
        return torch.empty(2**55, dtype=torch.float32)

    bench.trainer._replica.forward = full
    said = "out of memory with a batch of 4 images of 8 pixels, 2 parts one after the other: raise optim.accumulate"
    with pytest.raises(RunError, match=said):
        bench.fit()


def test_a_method_may_take_the_step_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(folder, 1, DENSE)
    before = [parameter.detach().clone() for parameter in bench.model.parameters()]
    monkeypatch.setattr(bench.sparsifier, "on_gradients", lambda moment: moment.step == 2)
    bench.fit()
    # of three steps the optimiser takes one
    assert bench.run.records()[0]["step"] == 3
    assert any((p.detach() != b).any() for p, b in zip(bench.model.parameters(), before, strict=True))


def test_the_loader_is_asked_for_each_epochs_resolution(folder: Path) -> None:
    bench = Bench(folder, 3, DENSE, resolution=lambda epoch: (4, 6, 8)[epoch])
    bench.fit()
    assert bench.train.resolutions == [4, 6, 8]
    assert [record["resolution"] for record in bench.run.records()] == [4, 6, 8]


def test_checkpoints_come_every_few_epochs_and_at_the_end(folder: Path) -> None:
    bench = Bench(folder, 5, DENSE, checkpoint_every=2)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_state", lambda path, state: seen.append(state["epoch"]))
        bench.fit()
    assert seen == [2, 4, 5]


def test_metrics_are_lines_of_json(folder: Path) -> None:
    bench = Bench(folder, 2, DENSE)
    bench.fit()
    lines = bench.run.metrics.read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1]


@pytest.mark.parametrize("adamw", [False, True])
def test_a_snapshot_brings_the_whole_model_back_and_forgets_the_optimisers_state(folder: Path, adamw: bool) -> None:
    bench = Bench(folder, 2, DENSE, adamw=adamw)
    before = bench.trainer.snapshot()
    bench.fit()
    assert not any(torch.equal(value, before[name]) for name, value in bench.model.state_dict().items())
    places = [parameter.data_ptr() for parameter in bench.model.parameters()]
    bench.trainer.restore(before)
    assert all(torch.equal(value, before[name]) for name, value in bench.model.state_dict().items())
    assert [parameter.data_ptr() for parameter in bench.model.parameters()] == places
    states = [value for state in bench.optimizer.state.values() for value in state.values()]
    assert len(states) > 0
    assert not any(value.any() for value in states)
