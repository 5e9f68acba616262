"""Kaiming initialisation of convolutions, as torchvision's ResNets have it (He et al., arXiv 1502.01852)."""

from __future__ import annotations

from torch import nn


def initialise_convolutions(model: nn.Module) -> None:
    """Normal with variance 2 / fan-out; norm and linear layers keep PyTorch's defaults."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
