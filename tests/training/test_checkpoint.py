from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from acdc_cli.errors import CheckpointError
from acdc_cli.training import checkpoint


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch was-run",)


def test_the_state_before_the_last_is_kept(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        checkpoint.save_state(tmp_path, {"epoch": epoch})
    assert checkpoint.load_state(tmp_path) == {"format": checkpoint.FORMAT, "epoch": 3}
    assert torch.load(tmp_path / "previous.pt")["epoch"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_state_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, keep: float, capsys: pytest.CaptureFixture[str]
) -> None:
    for epoch in (1, 2):
        checkpoint.save_state(tmp_path, {"epoch": epoch, "weight": torch.ones(1000)})
    whole = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    state = checkpoint.load_state(tmp_path)
    assert state is not None
    assert state["epoch"] == 1
    assert "last.pt cannot be read" in " ".join(capsys.readouterr().err.split())


def test_without_a_readable_state_there_is_an_error(tmp_path: Path) -> None:
    assert checkpoint.load_state(tmp_path) is None
    (tmp_path / "last.pt").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read"):
        checkpoint.load_state(tmp_path)


def test_a_checkpoint_never_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "last.pt").write_bytes(pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(CheckpointError):
        checkpoint.load_state(tmp_path)
    assert not (tmp_path / "was-run").exists()


def test_a_failing_write_leaves_the_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save_state(tmp_path, {"epoch": 1})

    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save_state(tmp_path, {"epoch": 2})
    state = checkpoint.load_state(tmp_path)
    assert state is not None
    assert state["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_masks_take_one_bit_a_weight_and_come_back_the_same(tmp_path: Path) -> None:
    masks = {"a.weight": torch.rand(7, 3, 3, 3) < 0.5, "b.weight": torch.rand(1000, 11) < 0.1}
    masks["a.weight"] = masks["a.weight"].to(memory_format=torch.channels_last)
    checkpoint.save_masks(tmp_path / "masks.safetensors", masks)
    found = checkpoint.load_masks(tmp_path / "masks.safetensors")
    assert {name: mask.tolist() for name, mask in found.items()} == {
        name: mask.tolist() for name, mask in masks.items()
    }
    assert (tmp_path / "masks.safetensors").stat().st_size < 11_000 / 8 + 500


def test_a_saved_model_has_plain_names_and_says_what_it_is(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    checkpoint.save_model(tmp_path / "m.safetensors", model, {"classes": 10})
    assert checkpoint.read_metadata(tmp_path / "m.safetensors") == {"classes": 10}
    found = load_file(tmp_path / "m.safetensors")
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def test_a_file_of_somebody_else_has_no_metadata(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(1)}, tmp_path / "m.safetensors")
    assert checkpoint.read_metadata(tmp_path / "m.safetensors") is None
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read_metadata(tmp_path / "bad.safetensors")
