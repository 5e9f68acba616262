"""State dicts of other projects: where they lie in a file, and what their names mean.

No project is special. A file is flattened to tensors by dotted paths; the prefix under which most of the model's names
lie is the state dict, whatever containers and wrappers it names. Masks and thresholds beside it are applied, and other
names of the same layers are matched by shape.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Size, Tensor

WRAPPERS = ("module", "_orig_mod", "_layer", "_fsdp_wrapped_module")
"""Names that DistributedDataParallel, torch.compile, AC/DC's authors and FSDP put into the path of a weight."""
_IN_PATH = re.compile(rf"(?<![^.])({'|'.join(WRAPPERS)})\.")
_COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
"""Counters of batch norm, torch's averaged models and thop; the model's output does not depend on them."""
_MOST_RULES, _MOST_PAIRS = 8, 250_000
"""Most rules of a suggestion, and most pairs of names that are compared for it."""
_MASKS = (
    ("{}.weight_orig", "{}.weight_mask"),
    ("{}.parametrizations.weight.original", "{}.parametrizations.weight.0.mask"),
    ("{}.weight", "{}._weight_mask"),
    ("{}.weight", "{}.weight_mask"),
    ("{}.weight", "{}.mask"),
    ("{}.bias", "{}._bias_mask"),
)
"""(weight, mask) in torch's pruning, its sparsifiers, and the code of AC/DC and WoodFisher, GMP and RigL."""


@dataclass
class StateDict:
    """Tensors by the model's names, as far as they are known."""

    prefix: str
    """Path of the tensors in the file."""
    tensors: dict[str, Tensor]
    remarks: list[str] = field(default_factory=list)
    """Changes made to them, for the user."""


def flatten(content: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of nested mappings, by their keys joined with dots."""
    if isinstance(content, Tensor):
        yield path, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from flatten(value, f"{path}.{key}" if path else str(key))


def plain(name: str) -> str:
    """The name without those of wrappers."""
    return _IN_PATH.sub("", name)


def state_dicts(content: Any, expected: Mapping[str, Size], rules: Sequence[str] = ()) -> list[StateDict]:
    """The state dicts in a file that hold some of the expected names, those with most of them first.

    expected: shapes by the model's names.  rules: `OLD=NEW`, replacements in the file's names, in this order.
    Raises ValueError if a name occurs twice, with and without a wrapper, where a mask does not have its weight's shape,
    and for a rule that changes no name or makes two names one.
    """
    tensors: dict[str, Tensor] = {}
    for path, tensor in flatten(content):
        if plain(path) in tensors:
            raise ValueError(
                f"it holds {plain(path)} twice, with and without a wrapper's prefix; save the one you mean"
            )
        tensors[plain(path)] = tensor
    remarks = []
    for rule in rules:
        renamed = _renamed(list(tensors), rule)
        remarks.append(f"{rule} renames {sum(name != other for name, other in renamed.items())} tensors")
        tensors = {renamed[name]: tensor for name, tensor in tensors.items()}
    covered: dict[str, int] = {}
    for path in tensors:
        for start in [0, *(match.end() for match in re.finditer(r"\.", path))]:
            if _base(path[start:]) in expected:
                covered[path[:start]] = covered.get(path[:start], 0) + 1
    # of equals, averages come last; optimiser state has no parameter's name
    ranked = sorted(covered, key=lambda prefix: (-covered[prefix], "ema" in prefix.lower()))
    return [_below(prefix, tensors, remarks) for prefix in ranked]


def _renamed(names: Sequence[str], rule: str) -> dict[str, str]:
    """The names by those before. Raises ValueError."""
    old, _, new = rule.partition("=")
    renamed: dict[str, str] = {}
    before: dict[str, str] = {}
    for name in names:
        renamed[name] = other = name.replace(old, new)
        if (twin := before.setdefault(other, name)) != name:
            raise ValueError(f"renaming {rule} makes {other} of both {twin} and {name}; rename the other one first")
    if not any(old in name for name in names):
        shown = ", ".join([*(name for name in names if not _is_leftover(name))][:3])
        raise ValueError(f"renaming {rule} changes none of its {len(names)} names ({shown}, …)")
    return renamed


def _base(name: str) -> str:
    """Name of the weight that this tensor is a stored form of."""
    return name.replace(".parametrizations.weight.original", ".weight").replace(".weight_orig", ".weight")


def _below(prefix: str, tensors: Mapping[str, Tensor], remarks: Sequence[str]) -> StateDict:
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    state = StateDict(prefix, own, list(remarks))
    _apply_masks(state)
    _apply_thresholds(state)
    return state


def _apply_masks(state: StateDict) -> None:
    tensors, applied = state.tensors, 0
    for stored, of_mask in _MASKS:
        ending, mask_ending = stored.format(""), of_mask.format("")
        for name in [name for name in tensors if name.endswith(mask_ending)]:
            layer = name.removesuffix(mask_ending)
            weight = tensors.get(layer + ending)
            if weight is None:
                continue
            mask = tensors.pop(name)
            if mask.shape != weight.shape:
                raise ValueError(
                    f"the mask {name} has shape {list(mask.shape)}, its weight {list(weight.shape)}; "
                    "apply the mask yourself and save the weights alone"
                )
            del tensors[layer + ending]
            tensors[_base(layer + ending)] = weight * mask.to(weight.dtype)
            applied += not bool(mask.all())
    if applied:
        state.remarks.append(f"{applied} masks applied")


def _apply_thresholds(state: StateDict) -> None:
    """STR (arXiv 2002.03231, eq. 4): a layer computes with sign(w) relu(|w| - sigmoid(s))."""
    tensors, ending = state.tensors, ".sparseThreshold"
    # another shape, or no weight, is a method that this formula does not describe: it stays, and is refused as unknown
    layers = [
        name.removesuffix(ending) for name, held in tensors.items() if name.endswith(ending) and held.numel() == 1
    ]
    layers = [layer for layer in layers if f"{layer}.weight" in tensors]
    for layer in layers:
        weight, threshold = tensors[f"{layer}.weight"], torch.sigmoid(tensors.pop(layer + ending))
        tensors[f"{layer}.weight"] = weight.sign() * (weight.abs() - threshold.flatten()[0]).relu()
    if layers:
        state.remarks.append(f"the thresholds of {len(layers)} layers applied, as STR does")


def rename(state: StateDict, expected: Mapping[str, Size]) -> None:
    """Rename layers to the model's names if the shapes leave no doubt.

    A renaming replaces one part of a path by another, in all names at once, and turns names that the model lacks into
    names that the file lacks, of the same shapes.
    """
    tensors = state.tensors
    for name in [name for name in tensors if name not in expected and _is_leftover(name)]:
        del tensors[name]
    missing = {name for name in expected if name not in tensors and not _is_leftover(name)}
    unknown = [name for name in tensors if name not in expected]
    for old, new in sorted({pair for name in unknown for other in missing for pair in _substitution(name, other)}):
        renamed = {name: _replaced(name, old, new) for name in unknown if name in tensors}
        renamed = {name: other for name, other in renamed.items() if other != name}
        is_wanted = renamed and set(renamed.values()) <= missing
        if is_wanted and all(_fits(tensors[name], expected[other]) for name, other in renamed.items()):
            for name, other in renamed.items():
                tensors[other] = tensors.pop(name).reshape(expected[other])
            missing -= set(renamed.values())
            state.remarks.append(f"{old} is {new} here")
    for name in expected:
        # a classifier that is a 1x1 convolution, as STR's
        if name in tensors and tensors[name].shape != expected[name] and _fits(tensors[name], expected[name]):
            tensors[name] = tensors[name].reshape(expected[name])
    _add_zero_bias(state, expected, missing)


def _add_zero_bias(state: StateDict, expected: Mapping[str, Size], missing: set[str]) -> None:
    """A classifier without a bias is one whose bias is zero."""
    if len(missing) == 1 and (name := next(iter(missing))).endswith(".bias"):
        weight = state.tensors.get(name.removesuffix("bias") + "weight")
        if weight is not None and weight.ndim == 2:
            state.tensors[name] = weight.new_zeros(expected[name])
            state.remarks.append(f"{name} is zero, because the file has none")


def suggested(tensors: Mapping[str, Tensor], expected: Mapping[str, Size]) -> list[str]:
    """Rules `OLD=NEW` that turn the file's names into the model's, each the beginning of names; empty if the shapes
    leave doubt, or other differences remain."""
    names = {name: tensor for name, tensor in tensors.items() if name in expected or not _is_leftover(name)}
    missing = {name for name in expected if name not in names and not _is_leftover(name)}
    rules: list[str] = []
    while missing and len(rules) < _MOST_RULES:
        unknown = [name for name in names if name not in expected]
        if len(unknown) * len(missing) > _MOST_PAIRS:
            return []
        pairs = {pair for name in unknown for other in missing if (pair := _beginnings(name, other))}
        best: dict[frozenset[str], list[tuple[str, str]]] = {}
        for old, new in pairs:
            renamed = {name: name.replace(old, new) for name in names if old in name}
            if (
                missing.issuperset(renamed.values())
                and len({*renamed.values()}) == len(renamed)
                and all(_fits(names[name], expected[other]) for name, other in renamed.items())
            ):
                best.setdefault(frozenset(renamed), []).append((old, new))
        widest = max(best, key=lambda covered: (len(covered), sorted(covered)), default=frozenset())
        if len(best.get(widest, [])) != 1:
            return []
        old, new = best[widest][0]
        rules.append(f"{old}={new}")
        names = {name.replace(old, new): tensor for name, tensor in names.items()}
        missing -= names.keys()
    return [] if missing or names.keys() - expected.keys() else rules


def _beginnings(name: str, other: str) -> tuple[str, str] | None:
    """(old, new): the names without the parts at their end that they share; None if they share none."""
    parts, others = name.split("."), other.split(".")
    same = 0
    while same < min(len(parts), len(others)) and parts[-1 - same] == others[-1 - same]:
        same += 1
    # a rule replaces some text
    same = min(same, len(parts) - 1)
    old, new = (".".join([*each[: len(each) - same], ""]) for each in (parts, others))
    return (old, "" if new == "." else new) if same else None


def other_head(tensors: Mapping[str, Tensor], expected: Mapping[str, Size], head: Collection[str]) -> dict[str, str]:
    """The file's names of the tensors in `head`, whose first axis may have another length; empty if there is doubt.

    head: the model's names of the tensors that have one row for each class.
    """
    unknown = [name for name in tensors if name not in expected]
    names: dict[str, str] = {}
    for name in head:
        leaf = name.rpartition(".")[2]
        others = [name] if name in tensors else [each for each in unknown if each.rpartition(".")[2] == leaf]
        fitting = [each for each in others if tensors[each].shape[1:] == expected[name][1:]]
        if len(fitting) == 1:
            names[name] = fitting[0]
    return names if {*unknown} <= {*names.values()} else {}


def _is_leftover(name: str) -> bool:
    """Whether code around a model stores this tensor, and no model computes with it."""
    leaf = name.rpartition(".")[2]
    return leaf in _COUNTERS or leaf.startswith("_")


def _substitution(name: str, other: str) -> Iterator[tuple[str, str]]:
    """(old, new), if the names differ in one part only."""
    parts, others = name.split("."), other.split(".")
    if parts[-1] == others[-1] and len(parts) == len(others):
        differing = [(old, new) for old, new in zip(parts, others, strict=True) if old != new]
        if len(differing) == 1:
            yield differing[0]


def _replaced(name: str, old: str, new: str) -> str:
    return ".".join(new if part == old else part for part in name.split("."))


def _fits(tensor: Tensor, shape: Size) -> bool:
    """Whether the tensor has this shape, perhaps with further axes of size 1 at its end."""
    extra = tensor.shape[len(shape) :]
    return tensor.shape[: len(shape)] == shape and all(side == 1 for side in extra)
