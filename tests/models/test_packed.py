"""Packed files give back every bit, and no damaged or hostile one gives anything."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from acdc_cli.errors import CheckpointError, ModelError
from acdc_cli.models import weights
from acdc_cli.models.build import find
from acdc_cli.models.packed_file import MAGIC, DType, pack, unpack
from acdc_cli.training.checkpoint import read_metadata

WEIGHTS = {"conv": torch.tensor([0.0, -1.5, 0, 0, 0, 0, 0, 0, 0, 2]).reshape(2, 5), "steps": torch.tensor(7)}


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Of random bits, NaN and negative zeros among them, with any share of zeros."""
    dtype = getattr(torch, draw(st.sampled_from(get_args(DType))))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    bits = torch.randint(0, 256, (torch.Size(shape).numel(), dtype.itemsize), generator=generator)
    bits = (bits & 1) if dtype == torch.bool else bits
    kept = torch.rand(len(bits), generator=generator) < draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    return (bits * kept[:, None]).to(torch.uint8).reshape(-1).view(dtype).reshape(shape)


@given(st.dictionaries(st.text(max_size=5), tensors(), max_size=4), st.dictionaries(st.text(), st.text(), max_size=2))
def test_packing_keeps_every_bit(content: dict[str, Tensor], metadata: dict[str, str]) -> None:
    unpacked, about = unpack(pack(content, metadata))
    assert about == metadata
    assert list(unpacked) == list(content)
    for name, tensor in content.items():
        assert (unpacked[name].dtype, unpacked[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(unpacked[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_strides_and_gradients_do_not_matter() -> None:
    weight = torch.randn(4, 3, 2, 2, requires_grad=True).to(memory_format=torch.channels_last)
    assert torch.equal(unpack(pack({"weight": weight}, {}))[0]["weight"], weight)


def test_what_has_no_packed_form_is_refused() -> None:
    with pytest.raises(ModelError, match="z holds complex64"):
        pack({"z": torch.zeros(1, dtype=torch.complex64)}, {})


def test_a_95_percent_sparse_layer_takes_an_eighth_of_its_size() -> None:
    weight = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    weight[5_000:] = 0
    weight = weight[torch.randperm(len(weight), generator=torch.Generator().manual_seed(1))]
    # a bit of mask, of which zstd finds 0.29, and 32 bits for a twentieth, of which it finds 27
    assert len(pack({"weight": weight}, {})) < 100_000 * 4 * 0.0625


def test_every_flipped_bit_and_every_missing_byte_is_found() -> None:
    content = pack(WEIGHTS, {"acdc": "{}"})
    draw = random.Random(0)
    for position in draw.sample(range(len(content)), 100):
        flipped = bytearray(content)
        flipped[position] ^= 1 << draw.randrange(8)
        with pytest.raises(ValueError, match=r"checksum"):
            unpack(bytes(flipped))
    for size in range(len(content)):
        with pytest.raises(ValueError, match=r"damaged|cut off"):
            unpack(content[:size])


def forged(change: Callable[[dict[str, Any]], object]) -> bytes:
    """A file with another header, and a checksum that fits."""
    content = pack(WEIGHTS, {})
    end = 16 + int.from_bytes(content[8:16], "little")
    header = json.loads(content[16:end])
    change(header)
    text = json.dumps(header).encode()
    new = MAGIC + len(text).to_bytes(8, "little") + text + content[end:-32]
    return new + hashlib.sha256(new).digest()


def first(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda header: header["tensors"][0].update(values)


HOSTILE = {
    "huge tensor": (first(shape=[1 << 20, 1 << 20]), "more than 16 GiB"),
    "huge count": (first(nonzero=1 << 60), "more than 16 GiB"),
    "many dimensions": (first(shape=[1] * 17), "header is damaged: tensors.0.shape"),
    "longer than a tensor can be": (first(shape=[0, 2**70]), "header is damaged: tensors.0.shape.1"),
    "negative": (first(shape=[-2, -5]), "header is damaged: tensors.0.shape.0"),
    "no number": (first(shape=[2.5]), "header is damaged: tensors.0.shape.0"),
    "unknown dtype": (first(dtype="float8"), "header is damaged: tensors.0.dtype"),
    "more values": (first(nonzero=3), "bytes of masks and values, but"),
    "another mask": (first(shape=[9]), "mask of conv does not fit"),
    "twice": (first(name="steps"), "names a tensor twice"),
    "no metadata": (lambda header: header.pop("metadata"), "header is damaged: metadata"),
}


@pytest.mark.parametrize(("change", "said"), HOSTILE.values(), ids=HOSTILE)
def test_a_header_that_lies_is_refused(change: Callable[[dict[str, Any]], object], said: str, tmp_path: Path) -> None:
    file = tmp_path / "forged.packed"
    file.write_bytes(forged(change))
    with pytest.raises(ModelError, match=f"not a packed file, or a damaged one: ValueError: .*{said}"):
        weights.read(file)


def test_a_damaged_frame_with_a_checksum_that_fits_is_refused() -> None:
    content = pack(WEIGHTS, {})
    start = content.index(b"\x28\xb5\x2f\xfd")
    # the frame's header is whole, and its blocks are not
    damaged = content[: start + 6] + bytes(byte ^ 0xFF for byte in content[start + 6 : -32])
    with pytest.raises(ValueError, match=r"it is damaged: .*decompress"):
        unpack(damaged + hashlib.sha256(damaged).digest())


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "long.packed"
    file.write_bytes(MAGIC + (1 << 63).to_bytes(8, "little") + b"{}" * 40)
    with pytest.raises(ModelError, match="not a packed file, or a damaged one"):
        weights.read(file)
    with pytest.raises(CheckpointError, match="cut off or not a packed file"):
        read_metadata(file)


def test_a_packed_file_from_before_its_model_changed_is_refused(tmp_path: Path) -> None:
    model, file = find("resnet8")(num_classes=10), tmp_path / "old.packed"
    file.write_bytes(pack(model.state_dict(), {"acdc": "{}"}))
    with pytest.raises(ModelError, match=r"was written by acdc 0\.1\.0"):
        weights.load_weights(model, file)


def test_without_zstandard_the_file_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "small.packed"
    file.write_bytes(pack(WEIGHTS, {}))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ModelError, match=r'small.packed cannot be read: .*pip install "acdc-cli\[deploy\]"'):
        weights.read(file)
