"""ResNet-50x0.5: the inner widths of every bottleneck halved, the stem and the outer widths kept (P2 G)."""

from __future__ import annotations

from torch import nn


def resnet50_half(num_classes: int) -> nn.Module:
    """3x3 convolutions of 32, 64, 128 and 256 channels between outer widths of 256, 512, 1024 and 2048.

    Parameter names and initialisation are those of torchvision's ResNet-50.
    """
    # here, because torchvision takes seconds to import and the catalog reads this file for every local model
    from torchvision.models.resnet import Bottleneck, ResNet

    model: nn.Module = ResNet(Bottleneck, [3, 4, 6, 3], num_classes=num_classes, width_per_group=32)
    return model


MODELS = {"resnet50_half": resnet50_half}
