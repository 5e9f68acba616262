"""ResNets for ImageNet, with the stride in the 3x3 convolution (He et al., arXiv 1512.03385, as torchvision has them).

Parameter names, initialisation and arithmetic are torchvision's to the bit, so weights can be exchanged. They are
defined here because torchvision takes a second to import, and because P2 halves a ResNet-50's widths.
"""

from __future__ import annotations

from functools import partial
from typing import get_args

from torch import Tensor, nn

from acdc_cli.models.initialisation import Fan, initialise_convolutions


class BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, width: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        activated: Tensor = self.relu(out)
        return activated


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution; the first two have `width` channels."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, width: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        activated: Tensor = self.relu(out)
        return activated


class ResNet(nn.Module):
    """A stem that divides the side by 4, and four stages of 64, 128, 256 and 512 channels times the block's expansion.

    width: channels of the inner convolutions, relative to the usual model.
    channels: of the stem and the first stage, which all others follow; 32 halves every width of the model.
    zero_init_residual: the scale of each block's last batch norm starts at zero, so the block starts as its shortcut.
    init, classifier_bias: `fan_in` and False are STR's (arXiv 2002.03231).
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        blocks: tuple[int, int, int, int],
        num_classes: int,
        width: float = 1.0,
        zero_init_residual: bool = False,
        init: Fan = "fan_out",
        classifier_bias: bool = True,
        channels: int = 64,
    ) -> None:
        super().__init__()
        if init not in get_args(Fan):
            raise ValueError(f"init must be {' or '.join(get_args(Fan))}")
        outer = channels * block.expansion
        self.conv1 = nn.Conv2d(3, channels, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = _stage(block, channels, channels, blocks[0], 1, width)
        self.layer2 = _stage(block, outer, 2 * channels, blocks[1], 2, width)
        self.layer3 = _stage(block, 2 * outer, 4 * channels, blocks[2], 2, width)
        self.layer4 = _stage(block, 4 * outer, 8 * channels, blocks[3], 2, width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * outer, num_classes, bias=classifier_bias)
        initialise_convolutions(self, init)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, BasicBlock | Bottleneck):
                    nn.init.zeros_(module.bn2.weight if isinstance(module, BasicBlock) else module.bn3.weight)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, height, width) -> (n, classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stage(
    block: type[BasicBlock | Bottleneck], in_channels: int, base: int, blocks: int, stride: int, width: float
) -> nn.Sequential:
    channels, inner = base * block.expansion, int(base * width)
    downsample = None
    # drawn before the block's own weights, as torchvision does
    if stride != 1 or in_channels != channels:
        shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))
    first = block(in_channels, channels, stride, inner, downsample)
    return nn.Sequential(first, *(block(channels, channels, 1, inner, None) for _ in range(blocks - 1)))


def resnet50_half(num_classes: int, zero_init_residual: bool = False) -> ResNet:
    """ResNet-50x0.5 (P2 G): 3x3 convolutions of 32, 64, 128 and 256 channels; stem and outer widths as usual."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, 0.5, zero_init_residual)


MODELS = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "resnet152": partial(ResNet, Bottleneck, (3, 8, 36, 3)),
    "resnet50_half": resnet50_half,
}
