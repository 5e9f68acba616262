from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import Bench

from acdc_cli.errors import RunError
from acdc_cli.training import checkpoint

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


@pytest.mark.parametrize("sparsity", [ACDC, DENSE, GMP], ids=lambda block: block["method"])
@pytest.mark.parametrize(("stop", "adamw"), [(1, False), (2, False), (3, False), (4, False), (5, False), (3, True)])
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

    torch.manual_seed(99)
    resumed = Bench(tmp_path / "cut", 6, sparsity, adamw)
    torch.manual_seed(98)
    state = checkpoint.load_state(resumed.run.checkpoints)
    assert state is not None
    resumed.fit(resumed.trainer.load_state_dict(state))

    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for name, mask in whole.sparsifier.masked.masks.items():
        assert torch.equal(mask, resumed.sparsifier.masked.masks[name]), name
    assert untimed(whole.run.records()) == untimed(resumed.run.records())


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


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(folder: Path) -> None:
    bench = Bench(folder, 3, DENSE)

    def broken(progress: float) -> float:
        if progress >= 1:
            with torch.no_grad():
                bench.model[6].bias.fill_(float("nan"))
        return 0.01

    object.__setattr__(bench.trainer._settings, "learning_rate", broken)
    with pytest.raises(RunError, match=r"no number any more: nan in epoch 1.*learning rate 0.01.*checkpoint is kept"):
        bench.fit()
    state = checkpoint.load_state(bench.run.checkpoints)
    assert state is not None
    assert state["epoch"] == 1
    assert all(value.isfinite().all() for value in state["model"].values())


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
