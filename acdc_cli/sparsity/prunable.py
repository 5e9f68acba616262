"""Which weights can be pruned: of all convolutions, linear layers and embeddings, those not kept dense."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import nn

from acdc_cli.errors import ModelError
from acdc_cli.sparsity.masked import count_zeros

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Linear weights that torch's attention holds itself, without a linear module."""


@dataclass(frozen=True)
class Layer:
    """The weight of a convolution, a linear module or an embedding."""

    name: str
    """Module name, such as `layer1.0.conv1`; for torch's attention, `layers.0.self_attention.in_proj`."""
    parameter_name: str
    """Such as `layer1.0.conv1.weight`."""
    kind: Literal["conv", "linear", "embedding"]
    parameter: nn.Parameter
    shape: torch.Size
    kept_dense: str | None
    """The first entry of `keep_dense` that matches the layer; None if it is pruned."""


def layers(model: nn.Module, keep_dense: Sequence[str]) -> list[Layer]:
    """All weights that can be pruned, in registration order, each once even if modules share it.

    keep_dense: `first`, `last` (the last linear layer), `depthwise`, `embeddings`, or patterns (fnmatch) of names.
    Raises ModelError if an entry matches no layer, or if nothing is left to prune.
    """
    weights = _weights(model)
    held = {entry: _held_by(entry, weights) for entry in keep_dense}
    if nowhere := [entry for entry, names in held.items() if not names]:
        raise ModelError(_matches_no_layer(nowhere, list(weights)))
    reasons = {name: entry for entry in reversed(keep_dense) for name in held[entry]}
    if weights and len(reasons) == len(weights):
        raise ModelError(
            f"sparsity.keep_dense: {list(keep_dense)} keeps all {len(weights)} layers dense; drop an entry"
        )
    return [
        Layer(
            name=name,
            parameter_name=weight.parameter_name,
            kind=_kind(weight.module),
            parameter=weight.parameter,
            shape=weight.parameter.shape,
            kept_dense=reasons.get(name),
        )
        for name, weight in weights.items()
    ]


def pruned(layers: Sequence[Layer]) -> dict[str, nn.Parameter]:
    """The weights that are not kept dense, by parameter name."""
    return {layer.parameter_name: layer.parameter for layer in layers if layer.kept_dense is None}


def layer_name(parameter_name: str) -> str:
    """`layer1.0.conv1` for `layer1.0.conv1.weight`, `layers.0.self_attention.in_proj` for `….in_proj_weight`."""
    return parameter_name.removesuffix("_weight").removesuffix("weight").removesuffix(".")


def nearest(entries: Iterable[str], names: Sequence[str]) -> list[str]:
    """The names most similar to the entries, a few for each."""
    return list(dict.fromkeys(name for entry in entries for name in get_close_matches(entry, names, n=3, cutoff=0)))


def zero_counts(layers: Sequence[Layer]) -> dict[str, tuple[int, int]]:
    """(weights that are exactly zero, all weights) of every layer, with one fetch from the device."""
    zeros = count_zeros([layer.parameter for layer in layers])
    return {layer.name: (count, layer.shape.numel()) for layer, count in zip(layers, zeros, strict=True)}


@dataclass(frozen=True)
class Extent:
    """The quantities that reveal a collapse (`runs.collapse`)."""

    largest_weight: float
    """Largest |w| of all layers."""
    empty_layers: int
    """Layers whose weights are all zero."""
    empty_channels: int
    """Output channels, of all layers, whose weights are all zero."""


def extent(layers: Sequence[Layer]) -> Extent:
    """The extent of these layers, with one fetch from the device."""
    rows = [layer.parameter.detach().flatten(1) for layer in layers]
    # the largest |w| of each output channel
    channels = [row.abs().amax(dim=1) for row in rows]
    largest = torch.stack([channel.amax().double() for channel in channels])
    empty = torch.stack([(channel == 0).sum() for channel in channels]).double()
    peaks, counts = torch.stack([largest, empty]).tolist()
    return Extent(max(peaks), sum(peak == 0 for peak in peaks), int(sum(counts)))


@dataclass(frozen=True)
class _Weight:
    """A weight that can be pruned, and the module that owns it."""

    module: nn.Module
    parameter_name: str
    parameter: nn.Parameter


def _weights(model: nn.Module) -> dict[str, _Weight]:
    """Weights by layer name; a shared weight belongs to the first module that has it."""
    weights: dict[str, _Weight] = {}
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for own_name in _prunable_weights(module):
            parameter_name = f"{module_name}.{own_name}" if module_name else own_name
            parameter = module.get_parameter(own_name)
            if id(parameter) not in seen:
                seen.add(id(parameter))
                weights[layer_name(parameter_name)] = _Weight(module, parameter_name, parameter)
    return weights


def _prunable_weights(module: nn.Module) -> Sequence[str]:
    if isinstance(module, (*_CONVOLUTIONS, nn.Linear, nn.Embedding)):
        return ("weight",)
    if isinstance(module, nn.MultiheadAttention):
        return [name for name in _PROJECTIONS if getattr(module, name) is not None]
    return ()


def _kind(module: nn.Module) -> Literal["conv", "linear", "embedding"]:
    if isinstance(module, nn.Embedding):
        return "embedding"
    return "conv" if isinstance(module, _CONVOLUTIONS) else "linear"


def _held_by(entry: str, weights: dict[str, _Weight]) -> list[str]:
    if word := _WORDS.get(entry):
        return word(weights)
    return [name for name in weights if fnmatchcase(name, entry)]


def _first(weights: dict[str, _Weight]) -> list[str]:
    return list(weights)[:1]


def _last(weights: dict[str, _Weight]) -> list[str]:
    return [name for name, weight in weights.items() if isinstance(weight.module, nn.Linear)][-1:]


def _depthwise(weights: dict[str, _Weight]) -> list[str]:
    return [
        name
        for name, weight in weights.items()
        if isinstance(weight.module, _CONVOLUTIONS) and weight.module.groups == weight.module.in_channels > 1
    ]


def _embeddings(weights: dict[str, _Weight]) -> list[str]:
    return [name for name, weight in weights.items() if isinstance(weight.module, nn.Embedding)]


_WORDS: dict[str, Callable[[dict[str, _Weight]], list[str]]] = {
    "first": _first,
    "last": _last,
    "depthwise": _depthwise,
    "embeddings": _embeddings,
}


def _matches_no_layer(entries: Sequence[str], names: Sequence[str]) -> str:
    return (
        f"sparsity.keep_dense: {', '.join(map(repr, entries))} matches no convolution or linear layer of the model; "
        f"nearest: {', '.join(nearest(entries, [*_WORDS, *names]))}"
    )
