"""Channels that no image can change are removed, and the layers that read them take over what they contributed.

A channel is dead where its filter has no weights, or none on anything that an image can change. It holds a constant
then. Dense engines save its work only if it is gone.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from acdc_cli.cost.count import operations

MULTIPLE = 16
"""Widths stay multiples of this: ONNX Runtime runs a layer of 250 channels slower than one of 256."""
_MODULES_BY_CHANNEL = (
    *(_BatchNorm, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Dropout, nn.Identity),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten),
)
_FUNCTIONS_BY_CHANNEL = {
    *("relu", "relu_", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "dropout"),
    *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "flatten"),
}
"""What is done to each channel by itself; a flattening, where channels have one position."""
_OUTPUTS = ("weight", "bias", "running_mean", "running_var"), ("out_channels", "out_features", "num_features")
_INPUTS = ("blur_filter",), ("in_channels", "in_features")
"""Tensors with a row for each channel, and what layers say of their widths."""
_Dense = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Size:
    channels: int
    """Outputs of convolutions and linear layers."""
    parameters: int
    macs: int
    """Multiply-accumulates of one image, those by zero weights included."""


@dataclass(frozen=True)
class Shrunk:
    model: nn.Module
    """In eval mode; the original itself where nothing was removed."""
    sizes: tuple[Size, Size] | None
    """Before and after; None where torch.fx cannot follow the model."""
    dead: int = 0
    """Outputs of the original's convolutions that no image can change."""
    untraced: str | None = None
    """Why torch.fx cannot follow the model."""

    @property
    def removed(self) -> int:
        return self.sizes[0].channels - self.sizes[1].channels if self.sizes else 0

    def as_dict(self) -> dict[str, Any]:
        before, after = map(asdict, self.sizes) if self.sizes else (None, None)
        return {"removed": self.removed, "dead": self.dead, "before": before, "after": after, "untraced": self.untraced}

    def described(self, name: str) -> str:
        """name: of the model."""
        if self.sizes is None:
            return f"nothing to shrink: {name} cannot be traced ({self.untraced})"
        before, after = self.sizes
        if self.removed:
            return (
                f"{self.removed:,} of {before.channels:,} channels of {name} removed: {before.parameters / 1e6:.2f} to "
                f"{after.parameters / 1e6:.2f} million parameters, {before.macs / 1e6:,.1f} to {after.macs / 1e6:,.1f} "
                "million MACs"
            )
        if self.dead == 0:
            return f"nothing to shrink: no channel of {name} is dead"
        return (
            f"nothing to shrink: {self.dead:,} channels of {name} are dead, but residual streams keep their channels, "
            f"and widths stay multiples of {MULTIPLE}"
        )


@torch.no_grad()
def shrunk(model: nn.Module, side: int, multiple: int = MULTIPLE) -> Shrunk:
    """A copy of a model without dead channels; the model is not touched.

    model: in eval mode; it takes (n, 3, side, side).  multiple: of widths; some dead channels stay for it.
    """
    # in double precision, so that the new weights are rounded once
    copied = copy.deepcopy(model).double()
    try:
        graph = fx.GraphModule(copied, _Tracer().trace(copied))
        constants = _Constants(graph)
        constants.run(next(copied.parameters()).new_full((1, 3, side, side), torch.nan))
        before = _size(graph, side)
    # of any kind: tracing calls the model's own code with stand-ins for tensors
    except Exception as error:
        return Shrunk(model, None, untraced=str(error).strip().partition("\n")[0])
    for space in _spaces(graph, constants):
        _cut(space, constants.values, multiple)
    graph.to(next(model.parameters()).dtype).eval().requires_grad_(False)
    after = _size(graph, side)
    return Shrunk(model if after == before else graph, (before, after), constants.dead)


def _size(model: nn.Module, side: int) -> Size:
    return Size(
        sum(len(module.weight) for module in model.modules() if isinstance(module, _Dense)),
        sum(parameter.numel() for parameter in model.parameters()),
        sum(operation.macs for operation in operations(model, side)),
    )


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # timm's batch norms that hold their activation, too
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


class _Constants(fx.Interpreter):
    """Runs a graph on an image of NaN, which stands for what an image can change: arithmetic hands it on."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.dead = 0
        self.values: dict[fx.Node, Tensor] = {}
        """(channels,) of a node that gives (1, channels) or (1, channels, height, width): what the channel holds at
        every position, or NaN."""
        self.flat: set[fx.Node] = set()
        """Nodes that give (1, channels)."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.ndim in (2, 4):
            positions = result[0].reshape(result.shape[1], -1)
            high, low = positions.amax(1), positions.amin(1)
            # the same but for sums in another order
            self.values[n] = high.where(high - low <= 1e-12 * high.abs().clamp(min=1), torch.nan)
            if result.ndim == 2:
                self.flat.add(n)
        return result

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, _Dense):
            # NaN times zero is NaN: so first where a weight meets NaN, then what comes of all else
            weights = {name: ((each != 0) & (name == "weight")).to(each) for name, each in module.named_parameters()}
            varies = functional_call(module, weights, args[0].isnan().to(args[0])) > 0
            if isinstance(module, nn.Conv2d):
                self.dead += int((~varies).all(dim=(0, 2, 3)).sum())
            return module(args[0].nan_to_num()).masked_fill(varies, torch.nan)
        if isinstance(module, _BatchNorm) and module.weight is not None:
            is_off = module.weight.view(-1, *[1] * (args[0].ndim - 2)) == 0
            return module(args[0].masked_fill(is_off, 0))
        return super().call_module(target, args, kwargs)


@dataclass(eq=False)
class _Space:
    """The outputs of a dense layer, through all that handles them one by one, to the dense layers that mix them."""

    layers: list[nn.Module] = field(default_factory=list)
    """The dense layer that they are outputs of, and what handles them one by one."""
    readers: list[tuple[fx.Node, _Dense]] = field(default_factory=list)
    """The dense layers that mix them, each with the node that it reads."""
    is_fixed: bool = False
    """Does anything else read them, such as the sum of a residual stream?"""


def _spaces(graph: fx.GraphModule, constants: _Constants) -> list[_Space]:
    values, calls = constants.values, Counter(node.target for node in graph.graph.nodes)
    spaces: dict[fx.Node, _Space] = {}
    for node in graph.graph.nodes:
        module = graph.get_submodule(node.target) if node.op == "call_module" else None
        inputs = node.all_input_nodes
        # a layer that is called twice stays as it is
        is_single = len(inputs) == 1 and (module is None or calls[node.target] == 1 or not module.state_dict())
        if is_single and _is_dense(module, inputs[0] in constants.flat):
            spaces[inputs[0]].readers.append((inputs[0], module))
            spaces[node] = _Space([module])
        elif is_single and _is_by_channel(node, module) and _width(values, node) == _width(values, inputs[0]):
            spaces[node] = spaces[inputs[0]]
            spaces[node].layers += [module] if module else []
        else:
            for each in inputs:
                spaces[each].is_fixed = True
            spaces[node] = _Space(is_fixed=True)
    return list(dict.fromkeys(spaces.values()))


def _is_dense(module: nn.Module | None, is_flat: bool) -> TypeGuard[_Dense]:
    return (isinstance(module, nn.Conv2d) and module.groups == 1) or (isinstance(module, nn.Linear) and is_flat)


def _is_depthwise(module: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels


def _is_by_channel(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return isinstance(module, _MODULES_BY_CHANNEL) or _is_depthwise(module)
    return getattr(node.target, "__name__", node.target) in _FUNCTIONS_BY_CHANNEL


def _width(values: Mapping[fx.Node, Tensor], node: fx.Node) -> int | None:
    return len(values[node]) if node in values else None


def _cut(space: _Space, values: Mapping[fx.Node, Tensor], multiple: int) -> None:
    """Removes the channels that hold a constant for every reader, less those that have to stay."""
    if space.is_fixed or not space.readers:
        return
    dead = ~torch.stack([values[node] for node, _ in space.readers]).isnan().any(0)
    readers = [(reader, values[node].where(dead, 0)) for node, reader in space.readers]
    kept = ~dead
    for reader, constants in readers:
        kept[_carrier(constants)] |= bool(_pads(reader) and constants.any())
    # one or more: no engine takes a layer without channels
    width = -(-max(int(kept.sum()), 1) // multiple) * multiple
    kept[(~kept).nonzero()[: width - int(kept.sum()), 0]] = True
    if kept.all():
        return
    for reader, constants in readers:
        _absorb(reader, constants, kept)
        reader.weight.data = reader.weight[:, kept]
        _narrow(reader, kept, *_INPUTS)
    for layer in space.layers:
        if _is_depthwise(layer):
            _narrow(layer, kept, *_INPUTS)
            layer.groups = width
        _narrow(layer, kept, *_OUTPUTS)


def _pads(layer: _Dense) -> bool:
    """Does it also read zeros beside the image, which no constant can stand for? BlurPool is a hook, and pads."""
    return isinstance(layer, nn.Conv2d) and (layer.padding not in ((0, 0), "valid") or bool(layer._forward_pre_hooks))


def _carrier(constants: Tensor) -> Tensor:
    """The channel that stays to hold all constants that meet padding."""
    return constants.abs().argmax()


def _absorb(layer: _Dense, constants: Tensor, kept: Tensor) -> None:
    """constants: of dead channels, 0 for others."""
    moved = constants.masked_fill(kept, 0)
    if not moved.any():
        return
    if _pads(layer):
        carrier = _carrier(constants)
        layer.weight[:, carrier] += torch.einsum("oi...,i->o...", layer.weight, moved / constants[carrier])
    else:
        shift = torch.einsum("oi...,i->o", layer.weight, moved)
        layer.bias = nn.Parameter(shift if layer.bias is None else layer.bias + shift)


def _narrow(layer: nn.Module, kept: Tensor, tensors: Sequence[str], widths: Sequence[str]) -> None:
    for name in tensors:
        if (tensor := getattr(layer, name, None)) is not None:
            tensor.data = tensor[kept]
    for name in widths:
        if hasattr(layer, name):
            setattr(layer, name, int(kept.sum()))
