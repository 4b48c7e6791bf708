"""The two small networks in torch, for training. Using their committed weights needs none of this."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from controller.zoo import multibox
from controller.zoo.anchors import BOXES_PER_CELL, default_boxes
from controller.zoo.draw import SCENE_SIZE
from controller.zoo.shapes import CLASSES
from controller.zoo.ssd import Decoding


class ConvNorm(nn.Module):  # type: ignore[misc]
    """Convolution without bias, then batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Residual(nn.Module):  # type: ignore[misc]
    """The basic block of He et al. 2015 (arXiv:1512.03385), with a 1×1 projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs, stride=stride)
        self.second = ConvNorm(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class ShapesClassifier(nn.Module):  # type: ignore[misc]
    """A ResNet-style network of 0.3 million parameters: (N, 3, 64, 64) → logits (N, 12)."""

    def __init__(self, classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 16, stride=2)
        self.stages = nn.Sequential(Residual(16, 16), Residual(16, 32, 2), Residual(32, 64, 2), Residual(64, 128, 2))
        self.fc = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(torch.relu(self.stem(x)))
        # A pooling window of fixed size: every compiler has one, while an adaptive one is exported as a reduction.
        return self.fc(nn.functional.avg_pool2d(x, 4).flatten(1))


class ShapesSsd(nn.Module):  # type: ignore[misc]
    """A single-shot detector (Liu et al. 2016, arXiv:1512.02325) on a ResNet-style backbone, 0.46 million parameters.

    (N, 3, 128, 128) → locations (N, 672, 4) and class logits (N, 672, 13), of which column 0 is the background.
    """

    def __init__(self, classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.columns = classes + 1
        self.stem = ConvNorm(3, 16, stride=2)
        widths = (64, 96, 64)
        self.stages = nn.ModuleList(
            (
                nn.Sequential(Residual(16, 32, 2), Residual(32, 64, 2), Residual(64, 64)),
                Residual(64, 96, 2),
                Residual(96, 64, 2),
            )
        )
        self.locations = nn.ModuleList(nn.Conv2d(width, BOXES_PER_CELL * 4, 3, padding=1) for width in widths)
        self.logits = nn.ModuleList(nn.Conv2d(width, BOXES_PER_CELL * self.columns, 3, padding=1) for width in widths)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.stem(x))
        locations, logits = [], []
        for stage, location, logit in zip(self.stages, self.locations, self.logits, strict=True):
            x = stage(x)
            locations.append(location(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4))
            logits.append(logit(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.columns))
        return torch.cat(locations, 1), torch.cat(logits, 1)


def fold_norms(network: nn.Module) -> nn.Module:
    """Fold every batch norm of an evaluated network into the convolution before it, in place."""
    for module in network.modules():
        if isinstance(module, ConvNorm):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = nn.Identity()
    return network


def shapes_ssd_decoding() -> Decoding:
    """How the outputs of :class:`ShapesSsd` become boxes."""
    return Decoding(
        default_boxes(),
        (SCENE_SIZE, SCENE_SIZE),
        score_threshold=0.01,
        iou_threshold=0.45,
        total=1000,
        most=100,
        variances=multibox.VARIANCES,
        max_log_size=math.log(1000 / 16),
    )
