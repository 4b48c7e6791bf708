"""ResNet v2 (He et al. 2016, arXiv:1603.05027) in torch, with the structure of MXNet Gluon's model zoo.

Batch norm and ReLU come before each convolution, the shortcut's projection takes what they give and has no batch norm,
and the picture is normalised by a batch norm of its own that has neither scale nor shift.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

CLASSES = 1000


class BasicBlock(nn.Module):  # type: ignore[misc]
    """Two 3×3 convolutions; the first one has the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs, 3)
        self.downsample = _projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(active)
        return self.conv2(torch.relu(self.bn2(self.conv1(active)))) + shortcut


class Bottleneck(nn.Module):  # type: ignore[misc]
    """1×1 to a quarter of the channels, 3×3 with the stride, 1×1 back."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = outputs // 4
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, inner, 1)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = _conv(inner, inner, 3, stride)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = _conv(inner, outputs, 1)
        self.downsample = _projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.tapped(x)[0]

    def tapped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What it gives, and what its 3×3 convolution takes."""
        active = torch.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(active)
        middle = torch.relu(self.bn2(self.conv1(active)))
        return self.conv3(torch.relu(self.bn3(self.conv2(middle)))) + shortcut, middle


class ResNetV2(nn.Module):  # type: ignore[misc]
    """(N, 3, H, W) → logits (N, 1000). ``blocks`` of each of the four stages, which give ``channels``."""

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], blocks: Sequence[int], channels: Sequence[int]
    ) -> None:
        super().__init__()
        self.normalise = nn.BatchNorm2d(3, affine=False)
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages, inputs = [], 64
        for stage, (count, outputs) in enumerate(zip(blocks, channels, strict=True)):
            first = block(inputs, outputs, 1 if stage == 0 else 2)
            stages.append(nn.Sequential(first, *(block(outputs, outputs, 1) for _ in range(count - 1))))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.bn2 = nn.BatchNorm2d(inputs)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(self.normalise(x)))))
        x = torch.relu(self.bn2(self.stages(x)))
        return self.fc(self.avgpool(x).flatten(1))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


def _projection(inputs: int, outputs: int, stride: int) -> nn.Conv2d | None:
    """Gluon projects where the channels change, and only there."""
    return _conv(inputs, outputs, 1, stride) if inputs != outputs else None
