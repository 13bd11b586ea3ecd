"""ResNet with basic blocks, after He et al., Deep Residual Learning for Image Recognition (2015).

https://arxiv.org/abs/1512.03385, sections 3.3 and 4.1, table 1. Names and shapes of the state dict equal
torchvision's, so that its published ResNet34 weights load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a skip connection (figure 5, left).

    Where the shape changes, the skip connection projects by a 1 x 1 convolution (option B).
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        skip = features if self.downsample is None else self.downsample(features)
        inner = self.bn1(self.conv1(features)).relu()
        summed: Tensor = self.bn2(self.conv2(inner)) + skip
        return summed.relu()


class ResNet(nn.Module):
    """Four stages of basic blocks; with the defaults the ResNet34 of table 1."""

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        blocks: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
    ) -> None:
        """Make the network with random weights (He et al. 2015, https://arxiv.org/abs/1502.01852).

        Args:
            num_classes: K, length of the output.
            in_channels: C, bands of the input.
            blocks: number of basic blocks in each of the four stages.
            width: channels of the first stage; each later stage has twice as many as the one before.

        """
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        first, second, third, fourth = blocks
        self.layer1 = _stage(width, width, first, stride=1)
        self.layer2 = _stage(width, 2 * width, second, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, third, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, fourth, stride=2)
        self.fc = nn.Linear(8 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) to logits (N, K)."""
        features = self.maxpool(self.bn1(self.conv1(images)).relu())
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


def _stage(in_channels: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    rest = (BasicBlock(channels, channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(in_channels, channels, stride), *rest)
