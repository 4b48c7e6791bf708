"""The backbones of GluonCV's detectors in torch: from the picture to the feature maps that predictors look at.

Modules stand in the order in which Gluon makes them: its names count them (:mod:`controller.zoo.gluon_names`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from controller.zoo import preactivation
from controller.zoo.separable import MobileNet

_STAGES = (256, 512, 1024, 2048)
#: The last two feature maps of MobileNet before its pooling: what the 23rd and the 27th ReLU give.
_MOBILENET_ENDS = (3 * 23, 3 * 27)
#: MXNet's own default, which the layers that GluonCV appends have; Gluon's layers, and torch's, have 1e-5.
_EXPANSION_EPS = 1e-3


class BottleneckV1(nn.Module):  # type: ignore[misc]
    """Gluon's v1: the first 1×1 convolution has the stride, and both 1×1 convolutions have a bias."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = outputs // 4
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, stride), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, 1, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outputs, 1), nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return torch.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNetV1(nn.Module):  # type: ignore[misc]
    """(N, 3, H, W) → what the third and the fourth stage give: (N, 1024, H/16, W/16), (N, 2048, H/32, W/32)."""

    channels = (1024, 2048)

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stages = _stages(BottleneckV1, blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in self.stages[:2]:
            x = stage(x)
        third = self.stages[2](x)
        return [third, self.stages[3](third)]


class _Start(nn.Module):  # type: ignore[misc]
    """The first block of a v2 stage as far as what its last convolution would take."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn2(self.conv1(torch.relu(self.bn1(x)))))
        return torch.relu(self.bn3(self.conv2(x)))


class ResNetV2(nn.Module):  # type: ignore[misc]
    """(N, 3, H, W) → (N, 256, H/16, W/16), (N, 512, H/32, W/32).

    GluonCV names the 23rd activation of the third stage and the third of the fourth, and its v2 blocks have three each:
    these lie within the eighth block, after its first convolution, and within the first, before its last.
    """

    channels = (256, 512)
    #: The block, counted from 0, whose inner value is the first feature map.
    TAPPED = 22 // 3

    def __init__(self, blocks: Sequence[int]) -> None:
        """``blocks`` of the first three stages."""
        super().__init__()
        self.normalise = nn.BatchNorm2d(3, affine=False)
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stages = _stages(preactivation.Bottleneck, blocks)
        self.stages.append(nn.Sequential(_Start(_STAGES[2], _STAGES[3] // 4, 2)))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(self.normalise(x)))))
        for stage in self.stages[:2]:
            x = stage(x)
        third = self.stages[2]
        x, tapped = third[self.TAPPED].tapped(third[: self.TAPPED](x))
        return [tapped, self.stages[3](third[self.TAPPED + 1 :](x))]


class MobileNetFeatures(nn.Module):  # type: ignore[misc]
    """(N, 3, H, W) → (N, 512, H/16, W/16), (N, 1024, H/32, W/32)"""

    channels = (512, 1024)

    def __init__(self) -> None:
        super().__init__()
        self.layers = MobileNet().features[: _MOBILENET_ENDS[1]]

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.layers[: _MOBILENET_ENDS[0]](x)
        return [first, self.layers[_MOBILENET_ENDS[0] :](first)]


class Expanded(nn.Module):  # type: ignore[misc]
    """The feature maps of a backbone, and further ones: for each, a 1×1 and a 3×3 convolution of stride 2."""

    def __init__(self, backbone: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels = (*backbone.channels, *channels)
        self.expand_trans_conv, self.expand_trans_bn = nn.ModuleList(), nn.ModuleList()
        self.expand_conv, self.expand_bn = nn.ModuleList(), nn.ModuleList()
        inputs = backbone.channels[-1]
        for outputs in channels:
            self.expand_trans_conv.append(nn.Conv2d(inputs, outputs, 1, bias=False))
            self.expand_trans_bn.append(nn.BatchNorm2d(outputs, eps=_EXPANSION_EPS))
            self.expand_conv.append(nn.Conv2d(outputs, outputs, 3, 2, 1, bias=False))
            self.expand_bn.append(nn.BatchNorm2d(outputs, eps=_EXPANSION_EPS))
            inputs = outputs

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.backbone(x)
        for layers in zip(self.expand_trans_conv, self.expand_trans_bn, self.expand_conv, self.expand_bn, strict=True):
            transition, transition_norm, convolution, norm = layers
            x = torch.relu(transition_norm(transition(maps[-1])))
            maps = [*maps, torch.relu(norm(convolution(x)))]
        return maps


class ChannelNorm(nn.Module):  # type: ignore[misc]
    """Each place divided by its length over the channels (Liu et al. 2015, arXiv:1506.04579), times a scale each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1), 20.0))

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).sum(1, keepdim=True) + 1e-5) * self.scale


class Vgg16Atrous(nn.Module):  # type: ignore[misc]
    """VGG-16 whose fully connected layers are convolutions, the first of them dilated, and further feature maps.

    ``extras``: of each, channels, kernel, stride and padding of its second convolution. The picture is normalised as
    for ImageNet's other networks, and scaled back to the values of 0 to 255 around 0 that the weights were trained on.
    """

    def __init__(self, extras: Sequence[tuple[int, int, int, int]]) -> None:
        super().__init__()
        self.register_buffer("init_scale", torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1) * 255)
        self.stages = nn.ModuleList()
        inputs = 3
        for count, outputs in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
            layers: list[nn.Module] = []
            for _ in range(count):
                layers += [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.ReLU()]
                inputs = outputs
            self.stages.append(nn.Sequential(*layers))
        dilated = nn.Conv2d(512, 1024, 3, padding=6, dilation=6)
        self.stages.append(nn.Sequential(dilated, nn.ReLU(), nn.Conv2d(1024, 1024, 1), nn.ReLU()))
        self.norm4 = ChannelNorm(512)
        self.extras = nn.ModuleList()
        inputs = 1024
        for outputs, kernel, stride, padding in extras:
            first = nn.Conv2d(inputs, outputs // 2, 1)
            second = nn.Conv2d(outputs // 2, outputs, kernel, stride, padding)
            self.extras.append(nn.Sequential(first, nn.ReLU(), second, nn.ReLU()))
            inputs = outputs
        self.channels = (512, 1024, *(outputs for outputs, *_ in extras))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = x * self.init_scale
        for stage in self.stages[:3]:
            x = functional.max_pool2d(stage(x), 2, ceil_mode=True)
        x = self.stages[3](x)
        maps = [self.norm4(x)]
        x = self.stages[4](functional.max_pool2d(x, 2, ceil_mode=True))
        maps.append(self.stages[5](functional.max_pool2d(x, 3, 1, 1)))
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return maps


def _stages(block: type[BottleneckV1] | type[preactivation.Bottleneck], blocks: Sequence[int]) -> nn.ModuleList:
    stages, inputs = nn.ModuleList(), 64
    for stage, count in enumerate(blocks):
        outputs = _STAGES[stage]
        first = block(inputs, outputs, 1 if stage == 0 else 2)
        stages.append(nn.Sequential(first, *(block(outputs, outputs, 1) for _ in range(count - 1))))
        inputs = outputs
    return stages
