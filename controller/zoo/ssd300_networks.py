"""SSD300 (Liu et al. 2016, arXiv:1512.02325) in torch, without decoding: pictures in, offsets and class logits out.

Modules have the names that the weight files of each origin use.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import ssd300_vgg16

from controller.zoo import initial
from controller.zoo.ssd300_boxes import LEVELS

#: COCO's 80 classes, and the background in column 0.
COLUMNS = 81
#: Channels inside and after each additional block, the stride and the padding of its 3×3 convolution.
_BLOCKS = ((256, 512, 2, 1), (256, 512, 2, 1), (128, 256, 2, 1), (128, 256, 1, 0), (128, 256, 1, 0))
#: About the root mean square of the pictures that VGG16 takes, which no deviation divides.
_VGG_PIXEL = 64.0


class MlperfSsd300(nn.Module):  # type: ignore[misc]
    """SSD300-ResNet34 of MLPerf Training v0.7 and of Ascend's model zoo, 81 columns.

    (N, 3, 300, 300) → offsets from the default boxes (N, 4, 8732), class logits (N, 81, 8732).
    """

    def __init__(self) -> None:
        super().__init__()
        backbone = torchvision.models.resnet34(weights=None)
        _keep_resolution(backbone.layer3[0], "conv1")
        stages = (backbone.layer1, backbone.layer2, backbone.layer3)
        # The original's batch norms have their ReLU inside, so none of these numbers is a ReLU's.
        self.model = nn.Sequential(backbone.conv1, backbone.bn1, backbone.maxpool, *stages)
        self.additional_blocks = _blocks(256, normalised=False)
        self.mbox = _heads(256, COLUMNS + 4)
        initial.draw(self, endings=initial.residual_endings(self), linear=self.mbox)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        convolution, norm, *others = self.model
        x = torch.relu(norm(convolution(image)))
        for layer in others:
            x = layer(x)
        locations, logits = [], []
        for feature, head, level in zip(_features(x, self.additional_blocks), self.mbox, LEVELS, strict=True):
            # Logits come first in what the one head of a level gives.
            logit, location = head(feature).split([level.boxes * COLUMNS, level.boxes * 4], 1)
            locations.append(location)
            logits.append(logit)
        return _boxes_last(locations, 4), _boxes_last(logits, COLUMNS)


class NvidiaSsd300(nn.Module):  # type: ignore[misc]
    """SSD300-ResNet50 of NVIDIA's DeepLearningExamples, 81 columns.

    (N, 3, 300, 300) → offsets from the default boxes (N, 4, 8732), class logits (N, 81, 8732).
    """

    def __init__(self) -> None:
        super().__init__()
        self.feature_extractor = _ResNet50Features()
        self.additional_blocks = _blocks(1024, normalised=True)
        self.loc = _heads(1024, 4)
        self.conf = _heads(1024, COLUMNS)
        initial.draw(self, endings=initial.residual_endings(self), linear=[*self.loc, *self.conf])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = _features(self.feature_extractor(image), self.additional_blocks)
        locations = [head(x) for head, x in zip(self.loc, features, strict=True)]
        logits = [head(x) for head, x in zip(self.conf, features, strict=True)]
        return _boxes_last(locations, 4), _boxes_last(logits, COLUMNS)


class Vgg16Ssd300(nn.Module):  # type: ignore[misc]
    """SSD300-VGG16 of torchvision, 91 columns: its backbone and its heads.

    (N, 3, 300, 300) → offsets from the default boxes (N, 8732, 4), class logits (N, 8732, 91).
    """

    def __init__(self) -> None:
        super().__init__()
        whole = ssd300_vgg16(weights=None, weights_backbone=None)
        self.backbone, self.head = whole.backbone, whole.head
        initial.draw(self, linear=[module for module in self.head.modules() if isinstance(module, nn.Conv2d)])
        with torch.no_grad():
            self.backbone.features[0].weight.div_(_VGG_PIXEL)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        found = self.head(list(self.backbone(image).values()))
        return found["bbox_regression"], found["cls_logits"]


class _ResNet50Features(nn.Module):  # type: ignore[misc]
    """ResNet-50 without its last stage: (N, 3, 300, 300) → (N, 1024, 38, 38)."""

    def __init__(self) -> None:
        super().__init__()
        backbone = torchvision.models.resnet50(weights=None)
        _keep_resolution(backbone.layer3[0], "conv1", "conv2")
        self.feature_extractor = nn.Sequential(*list(backbone.children())[:7])

    def forward(self, x: Tensor) -> Tensor:
        return self.feature_extractor(x)


def _keep_resolution(block: nn.Module, *convolutions: str) -> None:
    """Take the stride off a stage's first block, on its way and on its shortcut."""
    for convolution in (*(getattr(block, name) for name in convolutions), block.downsample[0]):
        convolution.stride = (1, 1)


def _blocks(inputs: int, *, normalised: bool) -> nn.ModuleList:
    """What makes each further feature map of the one before; convolutions have a batch norm or a bias."""

    def convolved(inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=not normalised)
        return [convolution, *([nn.BatchNorm2d(outputs)] if normalised else []), nn.ReLU()]

    blocks = nn.ModuleList()
    for inner, outputs, stride, padding in _BLOCKS:
        blocks.append(nn.Sequential(*convolved(inputs, inner, 1), *convolved(inner, outputs, 3, stride, padding)))
        inputs = outputs
    return blocks


def _heads(inputs: int, values: int) -> nn.ModuleList:
    """One convolution for each feature map, which gives so many values for each default box of a cell."""
    widths = (inputs, *(outputs for _, outputs, _, _ in _BLOCKS))
    return nn.ModuleList(
        nn.Conv2d(width, level.boxes * values, 3, padding=1) for width, level in zip(widths, LEVELS, strict=True)
    )


def _features(x: Tensor, blocks: nn.ModuleList) -> list[Tensor]:
    features = [x]
    for block in blocks:
        features.append(block(features[-1]))
    return features


def _boxes_last(maps: Sequence[Tensor], values: int) -> Tensor:
    """(N, values * shapes, H, W) of each level → (N, values, boxes of all levels)"""
    return torch.cat([one.reshape(one.shape[0], values, -1) for one in maps], 2)
