"""ResNet-50 [He et al. 2016] with random weights: a convolutional network of a known shape, without a download."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut: [b, c, h, w] -> [b, 4 * width, h / stride, w / stride]."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet50(nn.Module):
    """images [b, 3, h, w] -> class scores [b, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn = nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, 2, 1)
        blocks: list[nn.Module] = []
        channels = 64
        for stage, (count, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
            for i in range(count):
                blocks.append(_Bottleneck(channels, width, 2 if stage and not i else 1))
                channels = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, 1000)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                _unsettle(module)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn(self.conv(images))))
        return self.head(self.blocks(x).mean((2, 3)))


@torch.no_grad()
def _unsettle(norm: nn.BatchNorm2d) -> None:
    """Give a batch norm statistics that matter: at mean 0, variance 1 a pass that drops it goes unnoticed."""
    for tensor, centre, spread in (
        (norm.running_mean, 0.0, 0.2),
        (norm.running_var, 1.0, 0.1),
        (norm.weight, 0.7, 0.1),
        (norm.bias, 0.0, 0.1),
    ):
        assert tensor is not None
        tensor.normal_(centre, spread)
    assert norm.running_var is not None
    norm.running_var.clamp_(min=0.5)
