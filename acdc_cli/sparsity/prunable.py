"""Which weights can be pruned: every convolution and linear weight, less those that the recipe keeps dense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import nn

from acdc_cli.errors import ModelError
from acdc_cli.sparsity.masks import count_zeros

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_Prunable = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


@dataclass(frozen=True)
class Layer:
    """A convolution or linear module's weight."""

    name: str
    """Of the module, `layer1.0.conv1`."""
    kind: Literal["conv", "linear"]
    parameter: nn.Parameter
    shape: torch.Size
    kept_dense: str | None
    """The first entry of `keep_dense` that holds it back, or None: it is pruned."""

    @property
    def parameter_name(self) -> str:
        """`layer1.0.conv1.weight`."""
        return f"{self.name}.weight" if self.name else "weight"


def layers(model: nn.Module, keep_dense: Sequence[str]) -> list[Layer]:
    """All convolution and linear weights in registration order, each once however many modules share it.

    keep_dense: `first`, `last` (the last linear layer), `depthwise`, or patterns (fnmatch) of module names.
    Raises ModelError if an entry holds for no layer, or if nothing is left to prune.
    """
    modules = _modules(model)
    held = {entry: _held_by(entry, modules) for entry in keep_dense}
    if nowhere := [entry for entry, names in held.items() if not names]:
        raise ModelError(_holds_for_no_layer(nowhere, list(modules)))
    reasons = {name: entry for entry in reversed(keep_dense) for name in held[entry]}
    if modules and len(reasons) == len(modules):
        raise ModelError(f"sparsity.keep_dense: {list(keep_dense)} holds back all {len(modules)} layers; drop an entry")
    return [
        Layer(
            name=name,
            kind="conv" if isinstance(module, _CONVOLUTIONS) else "linear",
            parameter=module.get_parameter("weight"),
            shape=module.weight.shape,
            kept_dense=reasons.get(name),
        )
        for name, module in modules.items()
    ]


def pruned(layers: Sequence[Layer]) -> dict[str, nn.Parameter]:
    """The weights that are not kept dense, by parameter name."""
    return {layer.parameter_name: layer.parameter for layer in layers if layer.kept_dense is None}


def zero_counts(layers: Sequence[Layer]) -> dict[str, tuple[int, int]]:
    """(weights that are exactly zero, all weights) of every layer, with one fetch from the device."""
    zeros = count_zeros([layer.parameter for layer in layers])
    return {layer.name: (count, layer.shape.numel()) for layer, count in zip(layers, zeros, strict=True)}


def _modules(model: nn.Module) -> dict[str, _Prunable]:
    """The modules whose weight can be pruned; of several that share one, the first."""
    found: dict[str, _Prunable] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, _Prunable) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            found[name] = module
    return found


def _held_by(entry: str, modules: dict[str, _Prunable]) -> list[str]:
    if word := _WORDS.get(entry):
        return word(modules)
    return [name for name in modules if fnmatchcase(name, entry)]


def _first(modules: dict[str, _Prunable]) -> list[str]:
    return list(modules)[:1]


def _last(modules: dict[str, _Prunable]) -> list[str]:
    return [name for name, module in modules.items() if isinstance(module, nn.Linear)][-1:]


def _depthwise(modules: dict[str, _Prunable]) -> list[str]:
    return [
        name
        for name, module in modules.items()
        if isinstance(module, _CONVOLUTIONS) and module.groups == module.in_channels > 1
    ]


_WORDS: dict[str, Callable[[dict[str, _Prunable]], list[str]]] = {
    "first": _first,
    "last": _last,
    "depthwise": _depthwise,
}


def _holds_for_no_layer(entries: Sequence[str], names: Sequence[str]) -> str:
    near = {name: None for entry in entries for name in get_close_matches(entry, [*_WORDS, *names], n=3, cutoff=0)}
    return (
        f"sparsity.keep_dense: {', '.join(map(repr, entries))} matches no convolution or linear layer of the model; "
        f"near: {', '.join(near)}"
    )
