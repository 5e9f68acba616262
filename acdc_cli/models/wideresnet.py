"""Wide residual networks for small images, pre-activation blocks (Zagoruyko and Komodakis, arXiv 1605.07146)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from acdc_cli.models.initialisation import initialise_convolutions


class WideBlock(nn.Module):
    """BN, ReLU and a 3x3 convolution, twice; where the width changes, a 1x1 shortcut from after the first ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        residual: Tensor = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(activated)))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """Depth 6n + 4, stages of 16, 32 and 64 channels times `width`."""

    def __init__(self, depth: int, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(16, 16 * width, blocks, 1, dropout)
        self.layer2 = _stage(16 * width, 32 * width, blocks, 2, dropout)
        self.layer3 = _stage(32 * width, 64 * width, blocks, 2, dropout)
        self.bn = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, height, width) -> (n, classes)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        x = F.relu(self.bn(x))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, dropout: float) -> nn.Sequential:
    first = WideBlock(in_channels, out_channels, stride, dropout)
    return nn.Sequential(first, *(WideBlock(out_channels, out_channels, 1, dropout) for _ in range(blocks - 1)))


def wideresnet16_4(num_classes: int, dropout: float = 0.0) -> WideResNet:
    return WideResNet(16, 4, num_classes, dropout)


def wideresnet16_8(num_classes: int, dropout: float = 0.0) -> WideResNet:
    return WideResNet(16, 8, num_classes, dropout)


def wideresnet22_2(num_classes: int, dropout: float = 0.0) -> WideResNet:
    return WideResNet(22, 2, num_classes, dropout)


def wideresnet28_10(num_classes: int, dropout: float = 0.0) -> WideResNet:
    return WideResNet(28, 10, num_classes, dropout)


SMALL_IMAGES = True
MODELS = {
    "wideresnet16_4": wideresnet16_4,
    "wideresnet16_8": wideresnet16_8,
    "wideresnet22_2": wideresnet22_2,
    "wideresnet28_10": wideresnet28_10,
}
