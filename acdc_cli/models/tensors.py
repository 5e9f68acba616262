"""Tensors by name in a .safetensors file that carries their digest, so that a changed bit is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from acdc_cli import files
from acdc_cli.models.packed_file import is_packed, read_packed_header

_DIGEST = "acdc sha256"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the file whole or not at all. Raises RunError if it cannot be written."""
    # copies, because safetensors takes no two names for one storage and no channels_last strides
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    files.write_bytes(path, save(owned, {**metadata, _DIGEST: _digest(owned, metadata)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of any .safetensors file.

    Raises ValueError if a file of `save_tensors` has changed, and what safetensors raises over other damage.
    """
    # first, because it refuses what is not a file
    metadata = read_header(path)
    tensors = load_file(path)
    digest = metadata.pop(_DIGEST, None)
    if digest is not None and digest != _digest(tensors, metadata):
        raise ValueError("it is damaged: its checksum does not match")
    return tensors, metadata


def read_header(path: Path) -> dict[str, str]:
    """The metadata alone, unverified, of a .safetensors or a packed file."""
    if is_packed(path):
        return read_packed_header(path)
    files.open_regular(path).close()
    with safetensors.safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
