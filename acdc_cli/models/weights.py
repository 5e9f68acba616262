"""Weight files: read without running code, matched to a model by plain parameter names."""

from __future__ import annotations

import difflib
import os
import pickle
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import torch
from packaging.version import InvalidVersion, Version
from torch import Size, Tensor, nn

from acdc_cli import console, files
from acdc_cli.errors import ModelError, NotAFileError
from acdc_cli.models import foreign, torch_file
from acdc_cli.models.packed_file import is_packed, unpack
from acdc_cli.models.tensors import load_tensors, read_header
from acdc_cli.reading import in_words

_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
_SHOWN = 3
_PROGRAMS = (".onnx", ".mnn", ".pt2")


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's own tensors (no copies) by the names they have without DistributedDataParallel and torch.compile."""
    return {_plain(name): tensor for name, tensor in model.state_dict().items()}


def load_weights(
    model: nn.Module,
    path: str | Path,
    content: Any = None,
    rename: Sequence[str] = (),
    new_head: Collection[str] = (),
) -> None:
    """Copy all weights of a .safetensors, packed or torch file into the model. A model on the meta device, which has no
    memory, is only checked.

    content: of the file, if it was read before.  rename: `OLD=NEW`, replacements in the file's names.
    new_head: tensors of the model that stay as they are; the file may have them in other shapes, or not at all.
    They may lie anywhere in a torch file, in containers and with the prefixes of wrappers; masks and thresholds beside
    them are applied (`models.foreign`). Every such change is printed.
    Raises ModelError if the file cannot be read or does not fit; the model is then unchanged.
    """
    path = Path(path).expanduser()
    expected = plain_state_dict(model)
    content = _published(model, read(path) if content is None else content)
    shapes = {name: tensor.shape for name, tensor in expected.items()}
    state = _matching(content, shapes, path, rename)
    if new_head:
        for name in {*new_head, *foreign.other_head(state.tensors, shapes, new_head).values()}:
            state.tensors.pop(name, None)
            expected.pop(name, None)
        state.remarks.append(f"{_list(list(new_head))} stay at random: model.new_head")
    _check_fit(model, expected, state.tensors, path)
    if any(tensor.is_meta for tensor in expected.values()):
        return
    _check_age(model, path)
    for remark in state.remarks:
        console.say(f"{path}: {remark}")
    with torch.no_grad():
        for name in expected.keys() & state.tensors.keys():
            expected[name].copy_(state.tensors[name])


def classifier_of(model: nn.Module) -> tuple[str, nn.Linear]:
    """The model's last linear layer and its name. Raises ModelError if there is none."""
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ModelError("the model has no linear layer, so it has no classifier that could be replaced")
    return linear[-1]


def classes_in(model: nn.Module, path: Path, rename: Sequence[str] = ()) -> int:
    """The number of classes of a file with weights of this model, which may be built for any other number.

    Raises ModelError if the file cannot be read or has no classifier.
    """
    expected = {name: tensor.shape for name, tensor in plain_state_dict(model).items()}
    weight = f"{_plain(classifier_of(model)[0])}.weight"
    tensors = _matching(_published(model, read(path.expanduser())), expected, path, rename).tensors
    if weight not in tensors:
        raise ModelError(f"{path} has no {weight}, the classifier of the model; name the model it was made with")
    return tensors[weight].shape[0]


def _published(model: nn.Module, content: Any) -> Any:
    """The content of a file as the model's own method `published_tensors` translates it, if it has one."""
    translate = getattr(model, "published_tensors", None)
    if translate is None or not isinstance(content, Mapping):
        return content
    return translate(content)


def state_dicts(
    content: Any, expected: Mapping[str, Size], path: Path, rename: Sequence[str] = ()
) -> list[foreign.StateDict]:
    """As `foreign.state_dicts`. Raises ModelError where that raises ValueError."""
    try:
        return foreign.state_dicts(content, expected, rename)
    # torch's own, over masks and thresholds of unusual types
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{path}: {in_words(error)}") from error


def _matching(content: Any, expected: Mapping[str, Size], path: Path, rename: Sequence[str] = ()) -> foreign.StateDict:
    """The best matching state dict, by the model's names."""
    states = state_dicts(content, expected, path, rename)
    if not states:
        raise ModelError(f"{path} holds no weights of this model: {_description(content)}")
    best, *others = states
    for name, tensor in best.tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_complex():
            raise ModelError(
                f"{path}: {name} is sparse, quantised, complex or without data; save it as a dense tensor of numbers"
            )
    foreign.rename(best, expected)
    rivals = [state.prefix.rstrip(".") for state in others if len(state.tensors) >= len(expected) <= len(best.tensors)]
    if rivals:
        best.remarks.append(
            f"{best.prefix.rstrip('.') or 'the top level'} is taken; the file also holds {_list(rivals)}"
        )
    return best


def _description(content: Any) -> str:
    """The content of a file, for an error."""
    tensors = [f"{name} {list(tensor.shape)}" for name, tensor in foreign.flatten(content)]
    if tensors:
        return f"its {len(tensors)} tensors are {_list(tensors)}; name the model that the file was made with"
    what = f"keys {_list(list(map(str, content)))}" if isinstance(content, Mapping) and content else None
    if isinstance(content, _Inert):
        what = f"an object of class {content.path}; save its state_dict() instead"
    return f"it has no tensors ({what or f'a {type(content).__name__}'}); name a file with the model's weights"


def _check_age(model: nn.Module, path: Path) -> None:
    """Raises ModelError for a file that acdc wrote before the model's function changed."""
    since = getattr(model, "weights_since", None)
    has_header = path.suffix == ".safetensors" or is_packed(path)
    if since is None or not has_header or "acdc" not in (header := read_header(path)):
        return
    version = header.get("acdc version", "0.1.0")
    try:
        outdated = Version(version) < Version(since)
    except InvalidVersion as error:
        raise ModelError(f"{path} is damaged (acdc version: {error}); fetch or write the file again") from error
    if outdated:
        raise ModelError(
            f"{path} was written by acdc {version}; since {since} this model computes another function (see "
            "CHANGELOG.md). Train it again, or evaluate it with that version"
        )


def _plain(name: str) -> str:
    return _WRAPPERS.sub("", name)


def read(path: Path) -> Any:
    """The content of a .safetensors, packed or torch file.

    Raises ModelError if it is missing, damaged or could run code.
    """
    _require_weight_file(path)
    kind = "safetensors" if path.suffix == ".safetensors" else "torch"
    try:
        # safetensors reports a file that may not be read as missing
        files.open_regular(path).close()
        if path.suffix == ".safetensors":
            return load_tensors(path)[0]
        if is_packed(path):
            kind = "packed"
            return unpack(files.read_bytes(path))[0]
        if files.seal_holds(path) is False:
            raise ValueError("it is damaged: its checksum does not match")
        return torch_file.load(path, stand_ins=lambda name: type("Inert", (_Inert,), {"path": name}))
    except PermissionError as error:
        raise ModelError(f"{path} cannot be read: permission denied; ask its owner, or take another file") from error
    except NotAFileError as error:
        raise ModelError(f"{error}; name a file with weights") from error
    except pickle.UnpicklingError as error:
        # torch's own text is a page about torch.load
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        raise ModelError(
            f"{path} is damaged, or holds objects that are refused because loading them can run code"
            f"{f' ({blocked[1]})' if blocked else ''}. If you trust the file, save its tensors alone: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)"
        ) from error
    except ModelError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    # torch's restricted unpickler raises whatever a damaged file leads it to
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".partition("\n")[0].partition(". ")[0].rstrip(": ")
        raise ModelError(
            f"cannot read the weights in {path} (not a {kind} file, or a damaged one: {cause}); fetch or write the "
            "file again"
        ) from error


def _require_weight_file(path: Path) -> None:
    """Raises ModelError if there is no file, or a program in place of weights."""
    if not os.path.exists(path):
        raise ModelError(
            f"there is no weight file {path}; `model.weights` and `sparsity.from_checkpoint` take a .safetensors, "
            "packed or torch file"
        )
    if path.suffix in _PROGRAMS:
        raise ModelError(
            f"{path} is an exported program: acdc eval and acdc bench run it; everything else takes the run or "
            "checkpoint that it was made from"
        )


class _Inert:
    """Stands for an object whose class is never imported: an optimiser, arguments, a NumPy number."""

    path = ""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _check_fit(model: nn.Module, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    # a counter that old checkpoints lack, and that nothing reads if batch norm has a momentum
    missing = [name for name in expected if name not in tensors and not name.endswith("num_batches_tracked")]
    unknown = [name for name in tensors if name not in expected]
    reshaped = [name for name in expected if name in tensors and expected[name].shape != tensors[name].shape]
    if not (missing or unknown or reshaped):
        return
    if classes := _class_counts(model, expected, tensors, {*missing, *reshaped}):
        ours, theirs = classes
        raise ModelError(
            f"{path} is for {theirs} classes, but the data has {ours}: choose weights trained on this data, data with "
            f"{theirs} classes, or train a new classifier (--set model.new_head=true)"
        )
    shapes = [f"{name} is {list(tensors[name].shape)}, not {list(expected[name].shape)}" for name in reshaped]
    absent = [f"{name} {list(expected[name].shape)}{_nearest(name, expected, tensors, unknown)}" for name in missing]
    more = [f"{name} {list(tensors[name].shape)}" for name in unknown]
    parts = [
        f"{len(names)} {what}: {_list(names)}"
        for what, names in (("missing", absent), ("unknown", more), ("of another shape", shapes))
        if names
    ]
    rules = foreign.suggested(tensors, {name: tensor.shape for name, tensor in expected.items()})
    remedy = (
        f"The shapes fit: try {' '.join(f'--rename {shlex.quote(rule)}' for rule in rules)} (model.rename in a recipe)"
        if rules
        else "Name the model that the file was made with (timm: and torchvision: may name the same network's weights "
        "differently)"
    )
    raise ModelError(f"{path} does not fit the model ({len(expected)} tensors); {'; '.join(parts)}. {remedy}")


def _nearest(name: str, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], unknown: Sequence[str]) -> str:
    """The file's tensor that is probably meant."""
    same_shape = [other for other in unknown if tensors[other].shape == expected[name].shape]
    near = difflib.get_close_matches(name, same_shape, n=1, cutoff=0)
    return f" (nearest: {near[0]})" if near else ""


def _class_counts(
    model: nn.Module, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], wrong: AbstractSet[str]
) -> tuple[int, int] | None:
    """(the model's, the file's) number of classes if the classifier's outputs, and perhaps its name, are all that
    differs.

    wrong: the model's names that the file lacks or has in another shape.
    """
    classifier = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    head = {_plain(f"{classifier}.{leaf}") for leaf in ("weight", "bias")} & expected.keys()
    shapes = {name: tensor.shape for name, tensor in expected.items()}
    others = foreign.other_head(tensors, shapes, head)
    counts = {(expected[name].shape[0], tensors[others[name]].shape[0]) for name in wrong & others.keys()}
    ours, theirs = next(iter(counts), (0, 0))
    return (ours, theirs) if wrong <= others.keys() and ours != theirs else None


def _list(names: Sequence[str]) -> str:
    more = [f"… {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more])
