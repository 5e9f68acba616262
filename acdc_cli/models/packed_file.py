"""Packed weight files: a bit mask and the nonzero values of each tensor, exact to the bit; docs/deployment.md has the
layout."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from torch import Tensor

from acdc_cli import files
from acdc_cli.errors import ModelError

MAGIC = b"acdcpck1"
_DIGEST_BYTES = 32
_LEVEL = 9
_LARGEST = 1 << 34
"""Bytes of all tensors together, unpacked: no file may ask for more memory."""

_DENSEST, _SPARE = 1_000, 64 << 20
"""Bytes of the tensors, unpacked, for each byte of the file: weights of 99 % zeros take 1/50. Small files may
have more."""

DType = Literal["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
Bytes = NDArray[np.uint8]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    dtype: DType
    shape: Annotated[list[Annotated[NonNegativeInt, Field(lt=2**63)]], Field(max_length=16)]
    nonzero: NonNegativeInt | None
    """Number of values after the mask; None: there is no mask, and all values are stored."""

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """Bytes of a value."""
        return getattr(torch, self.dtype).itemsize  # type: ignore[no-any-return]

    @property
    def mask_bytes(self) -> int:
        return 0 if self.nonzero is None else -(-self.count // 8)

    @property
    def value_bytes(self) -> int:
        return self.width * (self.count if self.nonzero is None else self.nonzero)


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    tensors: list[_Entry]
    metadata: dict[str, str]


def is_packed(path: Path) -> bool:
    """Whether this is a packed file; False if it cannot be read."""
    try:
        with files.open_regular(path) as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A file's content. Raises ModelError for a dtype that cannot be packed, or if zstandard is missing."""
    entries, masks, values = [], [], []
    for name, tensor in tensors.items():
        entry, mask, stored = _packed(name, tensor.detach().cpu().contiguous())
        entries.append(entry)
        masks.append(mask)
        values.append(stored)
    payload = _zstandard().ZstdCompressor(level=_LEVEL).compress(b"".join([*masks, *values]))
    header = _Header(tensors=entries, metadata=dict(metadata)).model_dump_json().encode()
    content: bytes = MAGIC + len(header).to_bytes(8, "little") + header + payload
    return content + hashlib.sha256(content).digest()


def unpack(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata that `pack` was given.

    Raises ValueError if the content is damaged or contradicts itself, ModelError if zstandard is not installed.
    """
    if hashlib.sha256(content[:-_DIGEST_BYTES]).digest() != content[-_DIGEST_BYTES:]:
        raise ValueError("it is damaged: its checksum does not match")
    header, start = _header(content)
    entries = header.tensors
    if len({entry.name for entry in entries}) < len(entries):
        raise ValueError("it names a tensor twice")
    size = sum(entry.mask_bytes + entry.value_bytes for entry in entries)
    whole = max(size, sum(entry.width * entry.count for entry in entries))
    if whole > _LARGEST:
        raise ValueError(f"it claims to hold more than {_LARGEST >> 30} GiB")
    if whole > _SPARE + _DENSEST * len(content):
        raise ValueError(f"it claims to hold {whole:,} bytes, more than {_DENSEST:,} times its own")
    data = _decompressed(content[start:-_DIGEST_BYTES], size)
    sizes = [*(entry.mask_bytes for entry in entries), *(entry.value_bytes for entry in entries)]
    *parts, _ = np.split(data, list(accumulate(sizes)))
    masks, values = parts[: len(entries)], parts[len(entries) :]
    tensors = {
        entry.name: _tensor(entry, mask, value) for entry, mask, value in zip(entries, masks, values, strict=True)
    }
    return tensors, header.metadata


def read_packed_header(path: Path) -> dict[str, str]:
    """The metadata alone, unverified. Raises ValueError if it is damaged."""
    return _header(path.read_bytes())[0].metadata


def _header(content: bytes) -> tuple[_Header, int]:
    """The header and its end."""
    begin = len(MAGIC) + 8
    end = begin + int.from_bytes(content[len(MAGIC) : begin], "little")
    if not content.startswith(MAGIC) or end > len(content) - _DIGEST_BYTES:
        raise ValueError("it is cut off or not a packed file")
    try:
        return _Header.model_validate_json(content[begin:end]), end
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"its header is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _packed(name: str, tensor: Tensor) -> tuple[_Entry, bytes, bytes]:
    """The tensor, masked if that is smaller. Zero means that no bit is set: a negative zero is a value."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in get_args(DType):
        raise ModelError(f"{name} holds {dtype}, which cannot be packed")
    rows = tensor.reshape(-1).view(torch.uint8).numpy().reshape(-1, tensor.itemsize)
    nonzero = rows.any(axis=1)
    count = int(nonzero.sum())
    masked = -(-len(rows) // 8) + count * tensor.itemsize < rows.size
    entry = _Entry(name=name, dtype=dtype, shape=list(tensor.shape), nonzero=count if masked else None)  # type: ignore[arg-type]
    if not masked:
        return entry, b"", rows.T.tobytes()
    return entry, np.packbits(nonzero).tobytes(), rows[nonzero].T.tobytes()


def _tensor(entry: _Entry, mask: Bytes, values: Bytes) -> Tensor:
    rows = np.zeros((entry.count, entry.width), np.uint8)
    kept: Any = slice(None)
    if entry.nonzero is not None:
        kept = np.unpackbits(mask, count=entry.count).astype(bool)
        if kept.sum() != entry.nonzero:
            raise ValueError(f"the mask of {entry.name} does not fit its values")
    rows[kept] = values.reshape(entry.width, -1).T
    return torch.from_numpy(rows.reshape(-1)).view(getattr(torch, entry.dtype)).reshape(entry.shape)


def _decompressed(payload: bytes, size: int) -> Bytes:
    """The frame's content. Raises ValueError if it is damaged or does not have this size."""
    zstandard = _zstandard()
    try:
        frame = zstandard.get_frame_parameters(payload)
        if frame.content_size != size:
            raise ValueError(
                f"it holds {frame.content_size} bytes of masks and values, but the header describes {size}"
            )
        return np.frombuffer(zstandard.ZstdDecompressor().decompress(payload) if size else b"", np.uint8)
    except zstandard.ZstdError as error:
        raise ValueError(f"it is damaged: {error}") from error


def _zstandard() -> Any:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise ModelError('packed files need the package zstandard: pip install "acdc-cli[deploy]"') from error
    return zstandard
