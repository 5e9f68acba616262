"""ResNets for small images: depth 6n + 2, shortcuts without parameters (He et al., arXiv 1512.03385, 4.2)."""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from acdc_cli.models.initialisation import initialise_convolutions

Shortcut = Literal["pad", "conv"]
"""Where the width changes: subsample and pad the new channels with zeros (option A), or a 1x1 convolution and batch
norm (option B; P1's CIFAR-10)."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = out_channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Sequential | None = None
        if self.new_channels and shortcut == "conv":
            convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            projected: Tensor = self.downsample(x)
            return projected
        if self.new_channels == 0:
            return x
        x = x[:, :, :: self.stride, :: self.stride]
        # half before and half after, as in public code and checkpoints
        return F.pad(x, (0, 0, 0, 0, self.new_channels // 2, self.new_channels // 2))


class ResNet(nn.Module):
    """Stages of 16, 32 and 64 channels, `blocks` blocks each; images of any size, made for 28 to 64 pixels."""

    weights_since = "0.2.0"
    """Version since which shortcuts have new channels on both sides, not all at the end."""

    def __init__(self, blocks: int, num_classes: int, shortcut: Shortcut = "pad") -> None:
        super().__init__()
        if shortcut not in get_args(Shortcut):
            raise ValueError(f"shortcut must be {' or '.join(get_args(Shortcut))}")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, 1, shortcut)
        self.layer2 = _stage(16, 32, blocks, 2, shortcut)
        self.layer3 = _stage(32, 64, blocks, 2, shortcut)
        self.fc = nn.Linear(64, num_classes)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, height, width) -> (n, classes)."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1, shortcut) for _ in range(blocks - 1)))


SMALL_IMAGES = True
VARIANTS = ({"shortcut": "conv"},)
MODELS = {f"resnet{6 * blocks + 2}": partial(ResNet, blocks) for blocks in (1, 3, 5, 7, 9, 18)}
