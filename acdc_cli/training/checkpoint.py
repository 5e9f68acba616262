"""What is saved: resumable states, models with plain parameter names, and bit-packed masks. Loading runs no code."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import Tensor, nn

from acdc_cli import console, files
from acdc_cli.errors import CheckpointError

FORMAT = 2


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write last.pt; the one before it stays as previous.pt."""
    last = folder / "last.pt"
    with files.replacing(last) as partial:
        torch.save({"format": FORMAT, **state}, partial)
        if last.exists():
            last.replace(folder / "previous.pt")


def load_state(folder: Path) -> dict[str, Any] | None:
    """The newest state that can be read, last.pt or else previous.pt, with its tensors on the CPU.

    None before the first checkpoint. Raises CheckpointError if there are some, and none can be read.
    """
    problems = []
    for path in (folder / "last.pt", folder / "previous.pt"):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            continue
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            problems.append(f"{path} cannot be read ({type(error).__name__}): it is damaged")
            console.warn(problems[-1])
            continue
        if state.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has format {state.get('format')}, and this acdc reads {FORMAT}; resume with the version that "
                "wrote it (provenance.json names its commit), or train anew with --out"
            )
        return state
    if problems:
        raise CheckpointError("; ".join(problems))
    return None


def save_model(path: Path, model: nn.Module, metadata: Mapping[str, Any]) -> None:
    """A .safetensors file with the model's own names; `metadata` goes into its header as JSON."""
    # copies, because safetensors takes no two names for one storage and no channels_last strides
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    with files.replacing(path) as partial:
        save_file(tensors, partial, {"acdc": json.dumps(metadata)})


def read_metadata(path: Path) -> dict[str, Any] | None:
    """What `save_model` was given; None for a file of somebody else."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get("acdc")
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return None if text is None else json.loads(text)


def save_masks(path: Path, masks: Mapping[str, Tensor]) -> None:
    """One bit a weight, in the order of the contiguous tensor; shapes are in the header."""
    packed = {name: np.packbits(mask.cpu().contiguous().numpy()) for name, mask in masks.items()}
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    with files.replacing(path) as partial:
        save_arrays(packed, partial, {"shapes": json.dumps(shapes)})


def load_masks(path: Path) -> dict[str, Tensor]:
    """Bool masks by parameter name, as `save_masks` was given them."""
    with safetensors.safe_open(path, framework="numpy") as file:
        shapes = json.loads(file.metadata()["shapes"])
    return {name: _unpack(bits, shapes[name]) for name, bits in load_arrays(path).items()}


def _unpack(bits: np.ndarray[Any, np.dtype[np.uint8]], shape: list[int]) -> Tensor:
    flat = np.unpackbits(bits, count=int(np.prod(shape))).astype(bool)
    return torch.from_numpy(flat.reshape(shape))
