"""Saved files: resumable states, models with plain parameter names, bit-packed masks. Loading them runs no code."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import safetensors
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from acdc_cli import __version__, console, files, reading
from acdc_cli.errors import CheckpointError
from acdc_cli.models import torch_file
from acdc_cli.models.tensors import load_tensors, read_header, save_tensors

FORMAT = 5
_MaskShape = Annotated[list[PositiveInt], Field(min_length=1, max_length=16)]


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes last.pt, sealed by its checksum; the one before it stays as previous.pt.

    Raises RunError if it cannot be written; what was saved before stays.
    """
    last = folder / "last.pt"
    with files.replacing(last, keep=folder / "previous.pt") as partial, files.sealed(partial) as file:
        torch.save({"format": FORMAT, **state}, file)


def load_state(folder: Path) -> dict[str, Any] | None:
    """The newest complete state, last.pt or else previous.pt, with its tensors on the CPU.

    None before the first checkpoint. Raises CheckpointError if there are checkpoints but none is complete.
    """
    problems: list[str] = []
    for path in (folder / "last.pt", folder / "previous.pt"):
        try:
            state = _read_state(path)
        except FileNotFoundError:
            continue
        except (_DamagedError, OSError) as error:
            problems.append(f"{path} cannot be read ({error})")
            continue
        if problems:
            console.warn(f"{problems[0]}: {path}, which was saved before it, is used instead")
        return state
    if problems:
        raise CheckpointError(f"{'; '.join(problems)}: restore a copy, or start a new run with --out")
    return None


class _DamagedError(Exception):
    """The file is not what `save_state` wrote."""


def _read_state(path: Path) -> dict[str, Any]:
    holds = files.seal_holds(path)
    if holds is False:
        raise _DamagedError("it is damaged: its checksum does not match")
    try:
        state: Any = torch_file.load(path)
    # torch's restricted unpickler raises many kinds of errors for damaged or foreign files
    except Exception as error:
        raise _DamagedError("it is damaged, or not a checkpoint of acdc") from error
    if not isinstance(state, dict) or "format" not in state:
        raise _DamagedError("it is not a checkpoint of acdc")
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {state['format']}, but this acdc reads {FORMAT}; resume with the version that "
            "wrote it (provenance.json names its commit), or start a new run with --out"
        )
    if holds is None:
        raise _DamagedError("it is damaged: its checksum is missing")
    return state


def save_model(path: Path, model: nn.Module, metadata: Mapping[str, Any]) -> None:
    """A .safetensors file with the model's own names; `metadata` goes into its header as JSON."""
    save_tensors(path, model.state_dict(), model_header(metadata))


def model_header(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The header of a file with a model's weights, which marks the file as written by acdc."""
    return {"acdc": json.dumps(reading.plain(metadata)), "acdc version": __version__}


def read_metadata(path: Path) -> dict[str, Any] | None:
    """The metadata given to `save_model`; None for a foreign file. Its checksum is verified only when weights are
    loaded."""

    def refusal(cause: object) -> CheckpointError:
        return CheckpointError(f"{path} cannot be read ({cause}); fetch or write the file again")

    try:
        text = read_header(path).get("acdc")
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise refusal(error) from error
    metadata: dict[str, Any] | None = None if text is None else reading.parse_json(text, dict[str, Any], refusal)
    return metadata


def save_masks(path: Path, masks: Mapping[str, Tensor]) -> None:
    """One bit per weight, in the order of the contiguous tensor; shapes are in the header."""
    packed = {name: torch.from_numpy(np.packbits(mask.cpu().contiguous().numpy())) for name, mask in masks.items()}
    save_tensors(path, packed, {"shapes": json.dumps({name: list(mask.shape) for name, mask in masks.items()})})


def load_masks(path: Path) -> dict[str, Tensor]:
    """Bool masks by parameter name, as `save_masks` was given them. Raises CheckpointError if they are damaged."""
    try:
        packed, metadata = load_tensors(path)
        shapes = reading.parse_json(metadata["shapes"], dict[str, _MaskShape], ValueError)
        return {name: _unpack(bits, shapes[name]) for name, bits in packed.items()}
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"the masks in {path} cannot be read ({error}); restore a copy") from error


def _unpack(bits: Tensor, shape: list[int]) -> Tensor:
    count = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.shape != (-(-count // 8),):
        raise ValueError(f"{list(bits.shape)} bytes of {bits.dtype} are no mask of shape {shape}")
    flat = np.unpackbits(bits.numpy(), count=count).astype(bool)
    return torch.from_numpy(flat.reshape(shape))
