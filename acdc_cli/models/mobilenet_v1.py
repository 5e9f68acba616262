"""MobileNetV1: depthwise separable convolutions (Howard et al., arXiv 1704.04861, table 1)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from acdc_cli.models.initialisation import initialise_convolutions

# (output channels, stride) of the 13 separable blocks
_BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


class SeparableBlock(nn.Module):
    """A 3x3 convolution of each channel, then a 1x1 convolution over channels; BN and ReLU after both."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.depthwise(x)))
        return F.relu(self.bn2(self.pointwise(x)))


class MobileNetV1(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        widths = [32, *(width for width, _ in _BLOCKS)]
        self.blocks = nn.Sequential(
            *(
                SeparableBlock(before, after, stride)
                for before, (after, stride) in zip(widths[:-1], _BLOCKS, strict=True)
            )
        )
        self.fc = nn.Linear(widths[-1], num_classes)
        initialise_convolutions(self)
        for block in self.blocks:
            assert isinstance(block, SeparableBlock)
            # PyTorch's default, std 0.19, as in P1's code; fan-out counts all groups, and gives 0.015 to 0.08
            block.depthwise.reset_parameters()

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, height, width) -> (n, classes)."""
        x = self.blocks(F.relu(self.bn1(self.conv1(images))))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


MODELS = {"mobilenet_v1": MobileNetV1}
