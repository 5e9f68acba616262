"""A state that is written while training goes on is the state of its step, complete, one at a time, or an error."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from mini_trainer import MiniRun

from acdc_cli.errors import RunError
from acdc_cli.training import checkpoint
from acdc_cli.training.background_saves import BackgroundSaves

DENSE = {"method": "dense"}


class Gate:
    """In the place of `save_state`: each call announces itself and waits until it may write."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.begun, self.open = threading.Semaphore(0), threading.Semaphore(0)
        self.calls = 0
        self._save = checkpoint.save_state
        patch.setattr(checkpoint, "save_state", self)

    def __call__(self, folder: Path, state: dict[str, Any]) -> None:
        self.calls += 1
        self.begun.release()
        assert self.open.acquire(timeout=60)
        self._save(folder, state)


def test_what_training_changes_while_a_state_is_written_stays_out_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    weight, record = torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last), {"top1": 0.5}
    with BackgroundSaves() as saves:
        saves.save(tmp_path, {"weight": weight, "ends": {"dense": record}, "random": (3, [torch.ones(2)], None)})
        assert gate.begun.acquire(timeout=60)
        weight.zero_()
        record["top1"] = 0.0
        gate.open.release()
    state = checkpoint.load_state(tmp_path)
    assert state is not None
    assert torch.equal(state["weight"], torch.arange(24.0).reshape(1, 2, 3, 4))
    assert state["weight"].is_contiguous(memory_format=torch.channels_last)
    assert state["ends"] == {"dense": {"top1": 0.5}}
    number, [ones], none = state["random"]
    assert (number, ones.tolist(), none) == (3, [1.0, 1.0], None)


def test_the_next_state_waits_for_the_one_that_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    with BackgroundSaves() as saves:
        saves.save(tmp_path, {"step": torch.tensor(1)})
        assert gate.begun.acquire(timeout=60)
        second = threading.Thread(target=saves.save, args=(tmp_path, {"step": torch.tensor(2)}))
        second.start()
        second.join(timeout=0.2)
        assert second.is_alive()
        assert gate.calls == 1
        gate.open.release(2)
        second.join(timeout=60)
    saved = [torch.load(tmp_path / name)["step"].item() for name in ("previous.pt", "last.pt")]
    assert saved == [1, 2]


def test_a_tensor_of_another_shape_takes_new_memory(tmp_path: Path) -> None:
    with BackgroundSaves() as saves:
        for size in (3, 3, 5, 2):
            saves.save(tmp_path, {"losses": torch.full((size,), float(size))})
    state = checkpoint.load_state(tmp_path)
    assert state is not None
    assert state["losses"].tolist() == [2.0, 2.0]


def test_a_disk_that_fails_beside_the_training_stops_the_run_and_keeps_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = MiniRun(tmp_path / "run", 4, DENSE)
    save = checkpoint.save_state

    def failing(folder: Path, state: dict[str, Any]) -> None:
        if state["epoch"] == 2:
            raise RunError("the disk is full")
        save(folder, state)

    monkeypatch.setattr(checkpoint, "save_state", failing)
    with pytest.raises(RunError, match="the disk is full"):
        run.fit()
    state = checkpoint.load_state(run.directory.checkpoints)
    assert state is not None
    assert state["epoch"] == 1
    # it stopped at the next step, or while the next state waited
    assert [record["epoch"] for record in run.directory.records()] in ([0, 1], [0, 1, 2])


def saved_until(failure: BaseException, folder: Path) -> None:
    with BackgroundSaves() as saves:
        saves.save(folder, {"step": 1})
        raise failure


def test_an_error_waits_for_the_state_in_flight_and_an_interruption_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        saved_until(KeyboardInterrupt(), tmp_path / "interrupted")
    assert gate.begun.acquire(timeout=60)
    gate.open.release(2)
    with pytest.raises(ValueError, match="of training"):
        saved_until(ValueError("of training"), tmp_path)
    assert checkpoint.load_state(tmp_path) is not None
