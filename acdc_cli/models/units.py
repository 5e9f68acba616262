"""Attention heads and feed-forward neurons: which rows of one weight write them, and which weight reads them.

A model's file describes its own in a method `heads_and_neurons() -> Sequence[Units]`. The attention of torch and timm
and their feed-forward layers are described here, for models without that method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

Kind = Literal["heads", "neurons"]


@dataclass(frozen=True)
class Units:
    """The heads or neurons of a layer.

    Each is an equal share of consecutive channels, which must not mix before they are read: attention averages a
    channel over positions, an activation function acts on it alone.
    """

    kind: Kind
    layer: str
    """Module name, such as `layers.0.attention`."""
    count: int
    writes: str
    """Name of the parameter (channels, inputs): of the value projection, or of the first linear layer."""
    reads: str
    """Name of the parameter (outputs, channels): of the output projection, or of the second linear layer."""
    part: int = 0
    """Which of `parts` equal parts of the rows of `writes`, for projections that are one parameter."""
    parts: int = 1


def units_of(model: nn.Module) -> list[Units]:
    """Those that the model describes itself, else those of the layers of torch, torchvision and timm; empty if there
    are none."""
    describe = getattr(model, "heads_and_neurons", None)
    if callable(describe):
        return list(describe())
    known = ((name, module, _LIBRARIES.get(_class(module))) for name, module in model.named_modules())
    return [units for name, module, described in known if described for units in described(name, module)]


def heads(layer: str, count: int, value: str, output: str, part: int = 0, parts: int = 1) -> Units:
    """value, output: names of the parameters within the module `layer`."""
    return Units("heads", layer, count, _qualified(layer, value), _qualified(layer, output), part, parts)


def neurons(layer: str, count: int, first: str, second: str) -> Units:
    """first, second: names of the linear layers' parameters within the module `layer`."""
    return Units("neurons", layer, count, _qualified(layer, first), _qualified(layer, second))


def _qualified(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def _class(module: nn.Module) -> str:
    """The class itself, because one that is derived from it may mix channels."""
    return f"{type(module).__module__}.{type(module).__name__}"


def _torch_attention(name: str, module: Any) -> Iterator[Units]:
    # a position that is appended to the values gets a share of the average that depends on the inputs
    if module.bias_v is None and not module.add_zero_attn:
        if module.in_proj_weight is None:
            yield heads(name, module.num_heads, "v_proj_weight", "out_proj.weight")
        else:
            yield heads(name, module.num_heads, "in_proj_weight", "out_proj.weight", 2, 3)


def _torch_layer(name: str, module: Any) -> Iterator[Units]:
    yield neurons(name, module.linear1.out_features, "linear1.weight", "linear2.weight")


def _torchvision_mlp(name: str, module: Any) -> Iterator[Units]:
    yield neurons(name, module[0].out_features, "0.weight", "3.weight")


def _timm_attention(name: str, module: Any) -> Iterator[Units]:
    if isinstance(module.norm, nn.Identity) and getattr(module, "gate", None) is None:
        yield heads(name, module.num_heads, "qkv.weight", "proj.weight", 2, 3)


def _timm_mlp(name: str, module: Any) -> Iterator[Units]:
    if isinstance(module.fc1, nn.Linear) and isinstance(module.norm, nn.Identity):
        yield neurons(name, module.fc1.out_features, "fc1.weight", "fc2.weight")


_LIBRARIES: Mapping[str, Callable[[str, Any], Iterator[Units]]] = {
    "torch.nn.modules.activation.MultiheadAttention": _torch_attention,
    "torch.nn.modules.transformer.TransformerEncoderLayer": _torch_layer,
    "torch.nn.modules.transformer.TransformerDecoderLayer": _torch_layer,
    "torchvision.models.vision_transformer.MLPBlock": _torchvision_mlp,
    "timm.layers.attention.Attention": _timm_attention,
    "timm.layers.mlp.Mlp": _timm_mlp,
}
"""By class, whose libraries need not be imported."""
