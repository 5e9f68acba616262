from __future__ import annotations

import errno
import io
import os
import pickle
import re
import shutil
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from acdc_cli.errors import CheckpointError, ModelError
from acdc_cli.models.weights import load_weights
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


@pytest.fixture(scope="module")
def two_states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    for epoch in (1, 2):
        checkpoint.save_state(folder, {"epoch": epoch, "weight": torch.ones(100), "name": "a"})
    return folder


def loaded_from_damaged(two_states: Path, data: bytes) -> str:
    """What is said when last.pt holds these bytes; the state must be the one before."""
    whole = (two_states / "last.pt").read_bytes()
    said = io.StringIO()
    try:
        (two_states / "last.pt").write_bytes(data)
        with redirect_stderr(said):
            state = checkpoint.load_state(two_states)
    finally:
        (two_states / "last.pt").write_bytes(whole)
    assert state is not None
    assert state["epoch"] == 1
    return " ".join(said.getvalue().split())


@settings(max_examples=3 * settings().max_examples)
@given(place=st.floats(0, 1, exclude_max=True))
def test_one_flipped_bit_anywhere_means_the_state_before(two_states: Path, place: float) -> None:
    data = bytearray((two_states / "last.pt").read_bytes())
    bit = int(place * 8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    assert loaded_from_damaged(two_states, bytes(data)).count("cannot be read") == 1


def test_one_flipped_bit_in_the_checksum_means_the_state_before(two_states: Path) -> None:
    whole = (two_states / "last.pt").read_bytes()
    # one of each byte
    for bit in range(8 * (len(whole) - 78), 8 * len(whole), 9):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        assert "it is damaged: its checksum" in loaded_from_damaged(two_states, bytes(data))


@given(keep=st.floats(0, 1, exclude_max=True))
@example(keep=0.0)
@example(keep=0.9999)
def test_a_truncated_state_means_the_one_before_said_in_one_line(two_states: Path, keep: float) -> None:
    data = (two_states / "last.pt").read_bytes()
    said = loaded_from_damaged(two_states, data[: int(keep * len(data))])
    assert re.fullmatch(
        r"warning: \S+last.pt cannot be read \(it is damaged.*\): \S+previous.pt, which was saved before it, "
        r"is used instead",
        said,
    )


def foreign(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    "data", [b"no checkpoint", foreign(torch.ones(3)), foreign({"weight": torch.ones(3)}), foreign([1, 2])]
)
def test_a_foreign_file_means_the_state_before(two_states: Path, data: bytes) -> None:
    assert "not a checkpoint of acdc" in loaded_from_damaged(two_states, data)


def test_torch_itself_reads_a_state(two_states: Path) -> None:
    assert torch.load(two_states / "last.pt", weights_only=True)["epoch"] == 2


def test_a_state_of_another_format_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(foreign({"format": 2, "epoch": 7}))
    with pytest.raises(CheckpointError, match=r"has format 2, but this acdc reads 5; resume with the version that"):
        checkpoint.load_state(tmp_path)


def test_without_a_whole_state_there_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    assert checkpoint.load_state(tmp_path) is None
    for epoch in (1, 2):
        checkpoint.save_state(tmp_path, {"epoch": epoch})
    for name in ("last.pt", "previous.pt"):
        flip(tmp_path / name, 300)
    with pytest.raises(
        CheckpointError, match=r"last\.pt cannot be read .*; .*previous\.pt cannot be read .*: restore a copy, .*--out$"
    ):
        checkpoint.load_state(tmp_path)


def test_where_no_hard_links_are_the_state_before_is_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refused)
    for epoch in (1, 2, 3):
        checkpoint.save_state(tmp_path, {"epoch": epoch})
    assert torch.load(tmp_path / "last.pt")["epoch"] == 3
    assert torch.load(tmp_path / "previous.pt")["epoch"] == 2


def test_a_checkpoint_never_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "last.pt").write_bytes(pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(CheckpointError):
        checkpoint.load_state(tmp_path)
    assert not (tmp_path / "was-run").exists()


def test_masks_take_one_bit_a_weight_and_come_back_the_same(tmp_path: Path) -> None:
    masks = {"a.weight": torch.rand(7, 3, 3, 3) < 0.5, "b.weight": torch.rand(1000, 11) < 0.1}
    masks["a.weight"] = masks["a.weight"].to(memory_format=torch.channels_last)
    checkpoint.save_masks(tmp_path / "masks.safetensors", masks)
    loaded = checkpoint.load_masks(tmp_path / "masks.safetensors")
    assert {name: mask.tolist() for name, mask in loaded.items()} == {
        name: mask.tolist() for name, mask in masks.items()
    }
    assert (tmp_path / "masks.safetensors").stat().st_size < 11_000 / 8 + 500


def test_a_saved_model_has_plain_names_and_says_what_it_is(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    checkpoint.save_model(tmp_path / "m.safetensors", model, {"classes": 10})
    assert checkpoint.read_metadata(tmp_path / "m.safetensors") == {"classes": 10}
    loaded = load_file(tmp_path / "m.safetensors")
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_a_file_of_somebody_else_has_no_metadata(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(1)}, tmp_path / "m.safetensors")
    assert checkpoint.read_metadata(tmp_path / "m.safetensors") is None
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read_metadata(tmp_path / "bad.safetensors")


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@settings(max_examples=2 * settings().max_examples)
@given(place=st.floats(0, 1, exclude_max=True))
def test_one_flipped_bit_never_gives_other_masks(tmp_path_factory: pytest.TempPathFactory, place: float) -> None:
    path = tmp_path_factory.mktemp("masks") / "masks.safetensors"
    masks = {"a.weight": torch.arange(91).reshape(7, 13) % 3 == 0, "b.weight": torch.arange(9) % 2 == 0}
    checkpoint.save_masks(path, masks)
    flip(path, int(place * path.stat().st_size))
    try:
        loaded = checkpoint.load_masks(path)
    except CheckpointError:
        return
    # the flip is in the name of the checksum
    assert all(torch.equal(loaded[name], mask) for name, mask in masks.items())


def test_damaged_masks_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    checkpoint.save_masks(path, {"a": torch.ones(100) > 0})
    flip(path, -1)
    with pytest.raises(CheckpointError, match=r"masks\.safetensors cannot be read \(it is damaged: its checksum"):
        checkpoint.load_masks(path)


@pytest.mark.parametrize("place", [-1, 100])
def test_a_damaged_model_is_refused(tmp_path: Path, place: int) -> None:
    model = nn.Linear(10, 10)
    checkpoint.save_model(tmp_path / "m.safetensors", model, {"classes": 10})
    load_weights(model, tmp_path / "m.safetensors")
    flip(tmp_path / "m.safetensors", place)
    with pytest.raises(ModelError, match=r"m\.safetensors .*; fetch or write the file again"):
        load_weights(model, tmp_path / "m.safetensors")


def test_metadata_that_changed_is_refused_with_the_weights(tmp_path: Path) -> None:
    model = nn.Linear(10, 10)
    path = tmp_path / "m.safetensors"
    checkpoint.save_model(path, model, {"classes": 10})
    path.write_bytes(path.read_bytes().replace(b"10}", b"11}"))
    assert checkpoint.read_metadata(path) == {"classes": 11}
    with pytest.raises(ModelError, match="it is damaged: its checksum does not match"):
        load_weights(model, path)


def test_a_damaged_state_is_no_source_of_weights(two_states: Path, tmp_path: Path) -> None:
    shutil.copy(two_states / "last.pt", tmp_path / "last.pt")
    flip(tmp_path / "last.pt", 300)
    with pytest.raises(ModelError, match="its checksum does not match"):
        load_weights(nn.Linear(1, 1), tmp_path / "last.pt")
