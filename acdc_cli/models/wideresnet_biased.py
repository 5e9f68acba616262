"""The wide residual network that P1 trains on CIFAR-100: biased convolutions, the stride in the second of a block."""

from __future__ import annotations

from math import sqrt

from torch import Tensor, nn
from torch.nn import functional as F


class BiasedBlock(nn.Module):
    """BN, ReLU and a 3x3 convolution, twice, with dropout between; where the width changes, a 1x1 shortcut from the
    input itself."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride, padding=1)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(nn.Conv2d(in_channels, out_channels, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        out = self.dropout(self.conv1(F.relu(self.bn1(x))))
        residual: Tensor = self.conv2(F.relu(self.bn2(out)))
        shortcut: Tensor = self.shortcut(x)
        return residual + shortcut


class BiasedWideResNet(nn.Module):
    """Depth 28, stages of 160, 320 and 640 channels; module names are those of P1's public code.

    Convolutions start with Xavier's uniform weights times the square root of 2, and biases of zero.
    """

    def __init__(self, num_classes: int, dropout: float = 0.3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.layer1 = _stage(16, 160, 1, dropout)
        self.layer2 = _stage(160, 320, 2, dropout)
        self.layer3 = _stage(320, 640, 2, dropout)
        # 0.9 of every new batch, not of the running mean, as in P1's code, and in no other layer
        self.bn1 = nn.BatchNorm2d(640, momentum=0.9)
        self.linear = nn.Linear(640, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight, gain=sqrt(2))
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, height, width) -> (n, classes)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        x = F.relu(self.bn1(x))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(in_channels: int, out_channels: int, stride: int, dropout: float) -> nn.Sequential:
    first = BiasedBlock(in_channels, out_channels, stride, dropout)
    return nn.Sequential(first, *(BiasedBlock(out_channels, out_channels, 1, dropout) for _ in range(3)))


SMALL_IMAGES = True
MODELS = {"wideresnet28_10_biased": BiasedWideResNet}
