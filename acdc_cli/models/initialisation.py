"""Random initial weights, and building a model without drawing them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWN = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.erfinv_})


class Undrawn(TorchFunctionMode):
    """Within it, tensors on the meta device, which have no values, are not filled at random: torch would import its
    compiler for that, which takes a second."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _DRAWN and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


Fan = Literal["fan_out", "fan_in"]


def initialise_convolutions(model: nn.Module, fan: Fan = "fan_out") -> None:
    """Initialise as torchvision's ResNets do (He et al., arXiv 1502.01852): normal with variance 2 / fan-out; norm and
    linear layers keep PyTorch's defaults.

    fan: `fan_in` is STR's (arXiv 2002.03231), linear weights included, for its classifier is a 1x1 convolution.
    """
    kinds = (nn.Conv2d, nn.Linear) if fan == "fan_in" else (nn.Conv2d,)
    for module in model.modules():
        if isinstance(module, kinds):
            nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")
