from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from epoch import recorded
from mini_trainer import ADAMW, SGD, FewImages, MiniRun, StopAtCall
from torch import nn

from acdc_cli.data.batches import Batch
from acdc_cli.errors import DataError, RunError, Stopped
from acdc_cli.recipe.blocks.task import TaskBlock
from acdc_cli.runs.run_dir import RunDir
from acdc_cli.runs.tracker import JsonLines, Tracker
from acdc_cli.tasks.multiclass import Task as Classification
from acdc_cli.training import checkpoint
from acdc_cli.training.progress import warn_of_collapse
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
Wholes = Callable[[dict[str, Any], dict[str, Any]], MiniRun]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def untimed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: record[key] for key in record if key not in ("seconds", "images_per_second")} for record in records]


@pytest.mark.slow
def test_after_a_hundred_epochs_of_p1_exactly_its_epochs_are_sparse(folder: Path) -> None:
    run = MiniRun(folder, 100, P1, checkpoint={"every_epochs": 100}, train=FewImages(4), val=FewImages(4))
    run.fit()
    sparse = {record["epoch"] for record in run.directory.records() if record["phase"] == "sparse"}
    listed = [*range(10, 15), *range(20, 25), *range(30, 35), *range(40, 45), *range(50, 55), *range(60, 65)]
    assert sparse == {*listed, *range(70, 75), *range(85, 100)}
    # 162 + 648 weights, of which round(0.1 · 810) = 81 are kept
    for record in run.directory.records():
        if record["epoch"] in sparse:
            assert record["sparsity"] == pytest.approx(729 / 810)


def test_the_pair_is_the_end_of_the_last_dense_and_of_the_last_sparse_phase(folder: Path) -> None:
    run = MiniRun(folder, 6, ACDC)
    summary = run.fit()
    assert summary["sparse"]["epoch"] == 5
    assert summary["dense"]["epoch"] == 4
    dense = checkpoint.read_metadata(folder / "dense.safetensors")
    assert dense is not None
    assert dense["metrics"] == run.directory.records()[4]
    masks = sorted(path.name for path in run.directory.masks.iterdir())
    assert masks == [f"epoch-000{epoch}-sparse.safetensors" for epoch in (1, 3, 5)]


def test_every_record_has_what_the_epoch_was(folder: Path) -> None:
    run = MiniRun(folder, 6, ACDC)
    run.fit()
    record = run.directory.records()[5]
    assert record["step"] == 18
    assert record["lr"] == pytest.approx(0.05 / 18)
    assert record["resolution"] == 8
    assert record["sparsity"] == record["sparsity_all"] == pytest.approx(729 / 810)
    zeros = record["layers"]["0"] * 162 + record["layers"]["6"] * 648
    assert zeros == pytest.approx(729)
    weights = [module.weight.detach() for module in run.model if isinstance(module, nn.Conv2d | nn.Linear)]
    assert record["largest_weight"] == pytest.approx(max(weight.abs().max().item() for weight in weights))
    empty = sum(int((weight.flatten(1) == 0).all(dim=1).sum()) for weight in weights)
    assert (record["empty_channels"], record["empty_layers"]) == (empty, 0)
    expected = {"epoch", "step", "phase", "lr", "resolution", "train_loss", "val_loss", "top1", "top5", "entropy"}
    assert expected | {"sparsity", "sparsity_all", "layers", "images_per_second", "seconds"} <= record.keys()


def ends_like(whole: MiniRun, other: MiniRun) -> None:
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    for name, mask in whole.sparsifier.masked.masks.items():
        assert torch.equal(mask, other.sparsifier.masked.masks[name]), name
    assert untimed(whole.directory.records()) == untimed(other.directory.records())


def gone_on(folder: Path, sparsity: dict[str, Any], optim: dict[str, Any], **more: Any) -> MiniRun:
    """A new process's trainer, its generators elsewhere, with the newest state."""
    run = RunDir(folder)
    state = checkpoint.load_state(run.checkpoints)
    assert state is not None
    run.rewind_metrics(state["epoch"])
    torch.manual_seed(99)
    resumed = MiniRun(folder, 6, sparsity, optim=optim, **more)
    torch.manual_seed(98)
    resumed.trainer.load_state_dict(state)
    return resumed


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> Wholes:
    """The run of these blocks that nothing interrupts, trained once."""
    made: dict[tuple[str, str], MiniRun] = {}

    def whole(sparsity: dict[str, Any], optim: dict[str, Any]) -> MiniRun:
        key = (sparsity["method"], optim["name"])
        if key not in made:
            made[key] = MiniRun(tmp_path_factory.mktemp("whole"), 6, sparsity, optim=optim)
            made[key].fit()
        return made[key]

    return whole


@pytest.mark.parametrize(
    ("sparsity", "stop", "optim"),
    [
        # AC/DC has a phase of its own at each; the others are the same throughout, or nearly so
        pytest.param(
            *(block, stop, optim),
            id=f"{block['method']}-{stop}-{optim['name']}",
            marks=() if block is ACDC or stop in (2, 3) else pytest.mark.slow,
        )
        for block in (ACDC, DENSE, GMP)
        for stop, optim in ((1, SGD), (2, SGD), (4, SGD), (5, SGD), (3, ADAMW))
    ],
)
def test_a_resumed_run_ends_bit_identical(
    tmp_path: Path, sparsity: dict[str, Any], wholes: Wholes, stop: int, optim: dict[str, Any]
) -> None:
    first = MiniRun(tmp_path / "cut", 6, sparsity, optim=optim)
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

    resumed = gone_on(tmp_path / "cut", sparsity, optim)
    resumed.fit()
    ends_like(wholes(sparsity, optim), resumed)


@pytest.mark.parametrize(
    ("sparsity", "optim"),
    [
        pytest.param(
            *(block, optim),
            id=f"{block['method']}-{optim['name']}",
            marks=() if block is ACDC or optim is SGD else pytest.mark.slow,
        )
        for block in (ACDC, DENSE, GMP)
        for optim in (SGD, ADAMW)
    ],
)
def test_a_run_that_is_stopped_again_and_again_ends_bit_identical(
    tmp_path: Path, sparsity: dict[str, Any], wholes: Wholes, optim: dict[str, Any]
) -> None:
    # three steps and three validation batches an epoch: every fifth is a step of another epoch, or a batch
    resumed = MiniRun(tmp_path / "cut", 6, sparsity, optim=optim, stop_asked=StopAtCall(5))
    stops = []
    while True:
        try:
            resumed.fit()
            break
        except Stopped as stopped:
            stops.append(str(stopped))
        resumed = gone_on(tmp_path / "cut", sparsity, optim, stop_asked=StopAtCall(5))
    assert "stopped and saved after step 2 of 3 of epoch 1; resume with: acdc train" in stops[1]
    # one that was stopped in its validation validates again: 36 askings are not 7 stops of 5
    assert len(stops) >= 7
    ends_like(wholes(sparsity, optim), resumed)
    assert resumed.trainer._seconds > 0


@pytest.mark.parametrize("asked", [True, False])
def test_images_that_stop_coming_because_the_end_was_asked_for_are_no_fault_of_the_data(
    folder: Path, asked: bool
) -> None:
    ended: list[bool] = []
    run = MiniRun(folder, 1, DENSE, stop_asked=lambda: asked and bool(ended))
    whole = run.train.epoch

    @contextmanager
    def dying(*arguments: Any) -> Iterator[Iterator[Batch]]:
        def batches() -> Iterator[Batch]:
            with whole(*arguments) as given:
                yield next(given)
                ended.append(True)
                raise DataError("a process that draws images ended")

        yield batches()

    run.train.epoch = dying  # type: ignore[method-assign]
    with pytest.raises(Stopped if asked else DataError):
        run.fit()
    state = checkpoint.load_state(run.directory.checkpoints)
    assert (state is not None and state["step"] == 1) == asked


@pytest.mark.parametrize("asked", [True, False])
def test_so_are_workers_that_do_not_even_start(folder: Path, asked: bool) -> None:
    run = MiniRun(folder, 1, DENSE, stop_asked=lambda: asked)

    def dying() -> None:
        raise DataError("a process that draws images ended")

    run.val.warm_up = dying  # type: ignore[method-assign]
    with pytest.raises(Stopped if asked else DataError):
        run.fit()
    state = checkpoint.load_state(run.directory.checkpoints)
    assert (state is not None and state["step"] == 0) == asked


def test_minutes_after_the_last_checkpoint_one_is_written_within_the_epoch(folder: Path) -> None:
    run = MiniRun(folder, 1, DENSE, checkpoint={"every_minutes": 1e-9})
    saved: list[tuple[int, int]] = []
    original = checkpoint.save_state

    def noted(path: Path, state: dict[str, Any]) -> None:
        saved.append((state["epoch"], state["step"]))
        original(path, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_state", noted)
        run.fit()
    # after each step, after each validation batch, and at the end
    assert saved == [(0, 1), (0, 2), (0, 3), (0, 3), (0, 3), (0, 3), (1, 0)]


def test_a_checkpoint_is_written_at_every_phase_end(folder: Path) -> None:
    run = MiniRun(folder, 6, ACDC, checkpoint={"every_epochs": 100})
    saved: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_state", lambda path, state: saved.append(state["epoch"]))
        run.fit()
    assert saved == [phase.end for phase in run.sparsifier.phases.phases]


class Alerts(Tracker):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def alert(self, text: str) -> None:
        self.texts.append(text)


def test_a_collapse_is_warned_of_once_and_not_again_after_a_resume(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, alerts = RunDir(folder), Alerts()
    tracker = JsonLines(run.metrics)
    run.start("", "", {})
    for epoch, largest in enumerate([0.5, 49.0, 50.0, 5000.0]):
        tracker.log(recorded(epoch, phase="dense", largest_weight=largest, layers={}))
        # a resumed run knows what was recorded, and nothing else
        warn_of_collapse(RunDir(folder), [alerts])
    told = "in the dense phase of epoch 2"
    assert [told in text for text in alerts.texts] == [True]
    assert " ".join(capsys.readouterr().err.split()).count(told) == 1


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    def trained(accumulate: int) -> list[torch.Tensor]:
        run = MiniRun(tmp_path / str(accumulate), 2, DENSE, optim={"accumulate": accumulate})
        for module in run.model:
            # batch norm and dropout see the parts, not the batch
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.Dropout):
                module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
                module.training = False
        run.fit()
        return [parameter.detach() for parameter in run.model.parameters()]

    for whole, parts in zip(trained(1), trained(3), strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_clipped_to_its_norm(folder: Path) -> None:
    run = MiniRun(folder, 1, DENSE, optim={"clip_norm": 1e-9})
    before = [parameter.detach().clone() for parameter in run.model.parameters()]
    for group in run.optimizer.param_groups:
        group["weight_decay"] = 0.0
    run.fit()
    moved = max((p.detach() - b).abs().max().item() for p, b in zip(run.model.parameters(), before, strict=True))
    assert 0 <= moved < 1e-7


def poisoned(run: MiniRun, since: float, until: float = math.inf) -> None:
    """Between these times, in epochs, the loss is NaN."""
    healthy = run.model[6].bias.detach().clone()

    def rate(progress: float) -> float:
        with torch.no_grad():
            if since <= progress < until:
                run.model[6].bias.fill_(float("nan"))
            elif not run.model[6].bias.isfinite().all():
                run.model[6].bias.copy_(healthy)
        return 0.01

    object.__setattr__(run.trainer._parts, "learning_rate", rate)


def test_a_loss_that_stays_nan_stops_the_run_and_keeps_the_checkpoint(folder: Path) -> None:
    run = MiniRun(folder, 3, DENSE, optim={"nan_patience": 2}, checkpoint={"every_minutes": 1e-9})
    poisoned(run, since=1)
    said = (
        r"NaN or infinite for 2 steps in a row: epoch 1, step 2 of 3, learning rate 0.01, last finite loss \d.*is kept"
    )
    with pytest.raises(RunError, match=said):
        run.fit()
    state = checkpoint.load_state(run.directory.checkpoints)
    assert state is not None
    assert (state["epoch"], state["step"]) == (1, 0)
    assert all(value.isfinite().all() for value in state["model"].values())


def test_epochs_shorter_than_the_patience_leave_the_good_checkpoint_too(folder: Path) -> None:
    run = MiniRun(folder, 4, DENSE, optim={"nan_patience": 8})
    poisoned(run, since=1)
    with pytest.raises(RunError, match="NaN or infinite for 9 steps in a row"):
        run.fit()
    state = checkpoint.load_state(run.directory.checkpoints)
    assert state is not None
    assert (state["epoch"], state["step"]) == (1, 0)


def test_a_few_bad_losses_are_left_out_of_the_mean_and_end_nothing(folder: Path) -> None:
    run = MiniRun(folder, 2, DENSE, optim={"nan_patience": 2})
    poisoned(run, since=0.3, until=0.6)
    run.fit()
    first, second = run.directory.records()
    assert math.isfinite(first["train_loss"])
    assert math.isfinite(second["train_loss"])
    assert first["train_loss"] > 0


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_record_has_the_cross_entropy_with_the_labels_themselves(
    accumulate: int, smoothing: float, folder: Path
) -> None:
    run = MiniRun(
        folder, 1, DENSE, optim={"accumulate": accumulate}, task=Classification(TaskBlock(label_smoothing=smoothing))
    )
    smoothed, plain = [], []
    forward = run.trainer._backward._replica.forward

    def observed(images: torch.Tensor) -> torch.Tensor:
        logits = forward(images)
        batches.append(logits.detach())
        return logits

    batches: list[torch.Tensor] = []
    run.trainer._backward._replica.forward = observed  # type: ignore[method-assign]
    with run.train.epoch(0) as given:
        labels = torch.cat([batch.targets.clone() for batch in given])
    run.fit()
    for row, label in zip(torch.cat(batches).double(), labels, strict=True):
        shares = [math.exp(value) / sum(map(math.exp, row.tolist())) for value in row.tolist()]
        own, mean = -math.log(shares[label]), -sum(map(math.log, shares)) / 3
        plain.append(own)
        smoothed.append((1 - smoothing) * own + smoothing * mean)
    record = run.directory.records()[0]
    assert record["train_cross_entropy"] == pytest.approx(sum(plain) / 12, rel=1e-5)
    assert record["train_loss"] == pytest.approx(sum(smoothed) / 12, rel=1e-5)
    assert (record["train_loss"] == record["train_cross_entropy"]) == (smoothing == 0)


def test_losses_are_summed_over_the_steps_that_have_one() -> None:
    running = Running()
    for loss in (1.0, float("nan"), float("inf"), 4.0, float("nan")):
        running.add(torch.tensor([loss, loss / 2]), 2, 0.1)
    losses = running.fetch()
    assert (losses.mean, losses.bad, losses.longest_bad, losses.last_finite) == (2.5, 1, 2, 4.0)
    assert losses.unsmoothed == 1.25
    assert running.images == 10
    again = Running()
    again.load_state_dict(running.state_dict())
    assert again.fetch() == losses
    again.begin()
    again.add(torch.tensor([float("nan")] * 2), 2, 0.1)
    # the row of bad ones crossed the epochs
    assert again.fetch().longest_bad == again.fetch().bad == 2
    assert math.isnan(again.fetch().mean)


def test_out_of_memory_names_the_batch_that_was_tried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = MiniRun(folder, 1, DENSE, optim={"accumulate": 2})

    def full(images: torch.Tensor) -> torch.Tensor:
        # more than any machine has
        return torch.empty(2**55, dtype=torch.float32)

    run.trainer._backward._replica.forward = full
    said = "4 images of 8 pixels, in 2 parts: raise optim.accumulate"
    with pytest.raises(RunError, match=said):
        run.fit()


def test_a_method_may_take_the_step_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = MiniRun(folder, 1, DENSE)
    before = [parameter.detach().clone() for parameter in run.model.parameters()]
    monkeypatch.setattr(run.sparsifier, "on_gradients", lambda moment: moment.step == 2)
    run.fit()
    # of three steps the optimiser takes one
    assert run.directory.records()[0]["step"] == 3
    assert any((p.detach() != b).any() for p, b in zip(run.model.parameters(), before, strict=True))


def test_an_epochs_record_has_its_resolution(folder: Path) -> None:
    run = MiniRun(folder, 3, DENSE, resolution=lambda epoch: (4, 6, 8)[epoch])
    run.fit()
    assert [record["resolution"] for record in run.directory.records()] == [4, 6, 8]


def test_checkpoints_come_every_few_epochs_and_at_the_end(folder: Path) -> None:
    run = MiniRun(folder, 5, DENSE, checkpoint={"every_epochs": 2})
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_state", lambda path, state: seen.append(state["epoch"]))
        run.fit()
    assert seen == [2, 4, 5]


def test_metrics_are_lines_of_json(folder: Path) -> None:
    run = MiniRun(folder, 2, DENSE)
    run.fit()
    lines = run.directory.metrics.read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1]


@pytest.mark.parametrize("optim", [SGD, ADAMW], ids=lambda block: block["name"])
def test_a_snapshot_brings_the_whole_model_back_and_forgets_the_optimisers_state(
    folder: Path, optim: dict[str, Any]
) -> None:
    run = MiniRun(folder, 2, DENSE, optim=optim)
    before = run.sparsifier.training.snapshot()
    run.fit()
    assert not any(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    places = [parameter.data_ptr() for parameter in run.model.parameters()]
    run.sparsifier.training.restore(before)
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert [parameter.data_ptr() for parameter in run.model.parameters()] == places
    states = [value for state in run.optimizer.state.values() for value in state.values()]
    assert len(states) > 0
    assert not any(value.any() for value in states)


def test_epochs_that_are_not_validated_have_null_metrics_and_the_same_training(folder: Path, tmp_path: Path) -> None:
    MiniRun(tmp_path / "every", 6, DENSE).fit()
    MiniRun(folder, 6, DENSE, eval_every=3).fit()
    full, sparing = (untimed(RunDir(each).records()) for each in (tmp_path / "every", folder))
    validation = ("val_loss", "entropy", "top1", "top5")
    for epoch in range(6):
        expected = full[epoch] | ({} if epoch in (2, 5) else dict.fromkeys(validation))
        assert sparing[epoch] == expected


def test_what_ends_a_phase_or_is_kept_is_validated(folder: Path) -> None:
    run = MiniRun(folder, 9, ACDC | {"warmup_epochs": 4}, eval_every=100, checkpoint={"keep_every": 2})
    summary = run.fit()
    validated = {record["epoch"] for record in run.directory.records() if record["top1"] is not None}
    # phases end at epochs 3 to 8; models are kept after epochs 1, 3, 5 and 7
    assert validated == {1, 3, 4, 5, 6, 7, 8}
    assert summary["dense"]["top1"] is not None


def test_the_best_dense_model_is_chosen_among_validated_epochs(folder: Path) -> None:
    run = MiniRun(
        folder, 8, ACDC | {"last_phase": "dense_best", "dense_epochs": 2, "last_dense_epochs": 2}, eval_every=5
    )
    given: list[Any] = []
    on_epoch_end = run.sparsifier.on_epoch_end

    def noted(moment: Any, metrics: Any) -> None:
        given.append(dict(metrics))
        on_epoch_end(moment, metrics)

    run.sparsifier.on_epoch_end = noted  # type: ignore[method-assign]
    run.fit()
    assert [bool(metrics) for metrics in given] == [record["top1"] is not None for record in run.directory.records()]
    assert not all(given)


def test_the_host_fetches_the_losses_of_all_steps_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, fetched = MiniRun(folder, 2, DENSE, log_every=2), []
    fetch_pending = Running._fetch_pending

    def counted(running: Running) -> None:
        fetched.append(len(running._pending))
        fetch_pending(running)

    monkeypatch.setattr(Running, "_fetch_pending", counted)
    run.trainer._train()
    # of three steps: the look after two, and the one at the end
    assert fetched == [2, 1]


def test_an_operation_without_a_deterministic_algorithm_is_named(folder: Path) -> None:
    run = MiniRun(folder, 1, DENSE)

    def random(images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("adaptive_pool_cuda does not have a deterministic implementation, but you set …")

    run.trainer._backward._replica.forward = random
    said = "deterministic: adaptive_pool_cuda has no deterministic algorithm on this device; use --set determ"
    with pytest.raises(RunError, match=said):
        run.fit()
