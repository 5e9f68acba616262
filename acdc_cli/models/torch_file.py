"""torch.save's files, checked before torch reads them: what they hold may not exceed what they weigh."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from acdc_cli.models.foreign import flatten
from acdc_cli.reading import require_bounds

_LARGEST_PICKLE = 16 << 20
"""Most bytes of the pickle beside a file's tensors: it has a few hundred for each tensor."""
_MOST_OPERATIONS = 1_000_000
_MOST_MEMBERS = 200_000
_REPEATED, _SPARE = 4, 256 << 20
"""Tensors may have this many times the file's bytes, and a few more: some share their numbers."""
# called with a number, it takes that much memory
_REFUSED = {"__builtin__ bytearray", "builtins bytearray"}


def load(path: Path, mmap: bool = False, stand_ins: Callable[[str], type] | None = None) -> Any:
    """The content, on the CPU; no code is run.

    stand_ins: the class of the objects that take the place of those of a `module.class` which torch does not know; None
    refuses them.
    Raises ValueError for a file that would take more memory than its size justifies, and what torch raises over damage.
    """
    names = {name.replace(" ", ".") for name in _globals_of(path)}
    with torch.serialization.safe_globals([(stand_ins(name), name) for name in names] if stand_ins else []):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    require_bounds(content)
    # expanded tensors and views of one storage become this large once they are copied
    whole = sum(tensor.numel() * tensor.element_size() for _, tensor in flatten(content) if not tensor.is_meta)
    if whole > _REPEATED * path.stat().st_size + _SPARE:
        raise ValueError(f"its tensors have {whole:,} bytes, many times those of the file; save contiguous copies")
    return content


def _globals_of(path: Path) -> set[str]:
    """All classes and functions that a torch file's pickles name, as `module name`; nothing is unpickled.

    Raises ValueError for compressed or overlapping members, which torch.save does not write, and for too large pickles.
    """
    names: set[str] = set()
    left = _MOST_OPERATIONS
    for stream in _pickles(path):
        for opcode, argument, _ in pickletools.genops(stream):
            left -= 1
            if left < 0:
                raise ValueError(f"its pickles have more than {_MOST_OPERATIONS:,} operations; save its tensors alone")
            if opcode.name == "GLOBAL":
                names.add(str(argument))
    if refused := names & _REFUSED:
        raise ValueError(f"it holds a {refused.pop()}, which may take any amount of memory; save its tensors alone")
    return names


def _pickles(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        # as torch decides
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            # torch's first format: four pickles (magic number, protocol, machine, content), then the numbers
            yield from [file] * 4
            return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > _MOST_MEMBERS:
            raise ValueError(f"it has {len(members):,} members; save its tensors alone")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed, which torch.save never does; save its tensors with torch.save")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its members overlap: together they are larger than the file")
        for member in members:
            if not member.filename.endswith(".pkl"):
                continue
            if member.file_size > _LARGEST_PICKLE:
                raise ValueError(f"{member.filename} has {member.file_size:,} bytes; save its tensors alone")
            yield archive.open(member)
