"""Weight files: read without running code from them, matched to a model by plain parameter names."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acdc_cli import files
from acdc_cli.errors import ModelError
from acdc_cli.models.tensors import load_tensors

_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
_SHOWN = 3


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's own tensors (no copies) by the names they have without DistributedDataParallel and torch.compile."""
    return {_plain(name): tensor for name, tensor in model.state_dict().items()}


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the weights of a .safetensors or torch file into the model, every one of them.

    A torch file may hold the state dict itself or have it under `state_dict` or `model`; names may carry the
    prefixes of DistributedDataParallel and torch.compile.
    Raises ModelError if the file cannot be read or does not fit; the model is then unchanged.
    """
    path = Path(path).expanduser()
    found = _plainly_named(_state_dict(read(path), path), path)
    expected = plain_state_dict(model)
    _check_fit(model, expected, found, path)
    with torch.no_grad():
        for name in expected.keys() & found.keys():
            expected[name].copy_(found[name])


def _plain(name: str) -> str:
    return _WRAPPERS.sub("", name)


def _plainly_named(content: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in content.items():
        plain = _plain(name)
        if plain in found:
            raise ModelError(f"{path} holds {plain} twice, with and without a wrapper's prefix; save the one you mean")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_complex():
            raise ModelError(
                f"{path}: {name} is sparse, quantised, complex or without data; save it as a dense tensor of numbers"
            )
        found[plain] = tensor
    return found


def read(path: Path) -> Any:
    """What a .safetensors or torch file holds. Raises ModelError if it is missing, damaged or could run code."""
    if not path.is_file():
        raise ModelError(
            f"there is no weight file {path}; `model.weights` and `sparsity.from_checkpoint` take a .safetensors "
            "or torch file"
        )
    try:
        # safetensors calls a file missing that may not be read
        path.open("rb").close()
        if path.suffix == ".safetensors":
            return load_tensors(path)[0]
        if files.seal_holds(path) is False:
            raise ValueError("it is damaged: its checksum does not match")
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise ModelError(f"{path} cannot be read: permission denied; ask its owner, or take another file") from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} is damaged, or holds more than tensors and plain values; other Python objects are refused because "
            "opening them can run code. If you trust the file, save its tensors alone: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)"
        ) from error
    # torch's restricted unpickler raises whatever a damaged file leads it to
    except Exception as error:
        kind = "safetensors" if path.suffix == ".safetensors" else "torch"
        cause = f"{type(error).__name__}: {error}".partition("\n")[0].partition(". ")[0].rstrip(": ")
        raise ModelError(
            f"cannot read the weights in {path} (not a {kind} file, or a damaged one: {cause}); fetch or write the "
            "file again"
        ) from error


def _state_dict(content: Any, path: Path) -> Mapping[str, Tensor]:
    keys = list(map(str, content)) if isinstance(content, Mapping) else []
    for key in ("state_dict", "model"):
        if key in keys and isinstance(content[key], Mapping):
            content = content[key]
            break
    named = content.items() if keys else ()
    if not named or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in named):
        what = f"keys {_list(keys)}" if keys else f"a {type(content).__name__}"
        raise ModelError(
            f"{path} holds no state dict ({what}): expected tensors by name, alone or under 'state_dict' or 'model'"
        )
    return content  # type: ignore[no-any-return]


def _check_fit(model: nn.Module, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    # a counter that old checkpoints lack, and that nothing reads where BN has a momentum
    missing = [name for name in expected if name not in found and not name.endswith("num_batches_tracked")]
    unknown = [name for name in found if name not in expected]
    reshaped = [name for name in expected if name in found and expected[name].shape != found[name].shape]
    if not (missing or unknown or reshaped):
        return
    if not missing and not unknown and (classes := _class_counts(model, expected, found, reshaped)):
        ours, theirs = classes
        raise ModelError(
            f"{path} is for {theirs} classes, but the data has {ours}: choose weights trained on this data, or data "
            f"with {theirs} classes"
        )
    shapes = [f"{name} is {list(found[name].shape)}, not {list(expected[name].shape)}" for name in reshaped]
    parts = [
        f"{len(names)} {what}: {_list(names)}"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if names
    ]
    raise ModelError(
        f"{path} does not fit the model ({len(expected)} tensors); {'; '.join(parts)}. Name the model that the file "
        "was made with (timm: and torchvision: may name the same network's weights differently)"
    )


def _class_counts(
    model: nn.Module, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], reshaped: Sequence[str]
) -> tuple[int, int] | None:
    """(the model's, the file's) number of classes if the classifier's outputs are all that differs."""
    classifier = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    if not set(reshaped) <= {_plain(f"{classifier}.weight"), _plain(f"{classifier}.bias")}:
        return None
    if any(expected[name].shape[1:] != found[name].shape[1:] for name in reshaped):
        return None
    return expected[reshaped[0]].shape[0], found[reshaped[0]].shape[0]


def _list(names: Sequence[str]) -> str:
    more = [f"… {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more])
