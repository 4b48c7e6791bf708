"""The dense part of GluonCV's single-shot detectors: what each consists of, and the torch module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from controller.zoo import gluon_backbones as backbones

Floats = npt.NDArray[np.float64]

VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
#: The aspect ratios of a level's boxes: few, or many.
_FEW, _MANY = (1, 2, 0.5), (1, 2, 0.5, 3, 1 / 3)
#: Channels of the feature maps that GluonCV appends to a backbone.
_APPENDED = (512, 512, 256, 256)
#: VGG's further maps: channels, kernel, stride and padding of each.
_EXTRAS_300 = ((512, 3, 2, 1), (256, 3, 2, 1), (256, 3, 1, 0), (256, 3, 1, 0))
_EXTRAS_512 = ((512, 3, 2, 1), *[(256, 3, 2, 1)] * 3, (256, 4, 1, 1))


@dataclass(frozen=True, slots=True)
class Spec:
    """A detector by the arguments that GluonCV makes it with.

    ``sizes`` are sides of square boxes in pixels: each level has its own and, as a geometric mean, the next one's.
    ``steps`` are the pixels from cell to cell of each level.
    """

    backbone: Literal["resnet50_v1", "resnet101_v2", "mobilenet1.0", "vgg16_atrous"]
    dataset: Literal["voc", "coco"]
    side: int
    sizes: tuple[float, ...]
    steps: tuple[int, ...]

    @property
    def ratios(self) -> tuple[tuple[float, ...], ...]:
        """Of each level: few at the finest one and at the two coarsest."""
        return (_FEW, *[_MANY] * (len(self.steps) - 3), _FEW, _FEW)

    @property
    def cells(self) -> tuple[int, ...]:
        """Along a side of each level's map."""
        return tuple(-(-self.side // step) for step in self.steps)

    def default_boxes(self) -> list[Floats]:
        """Of each level (cells * cells * shapes, 4): centre-x, centre-y, width, height in pixels, row by row."""
        levels = []
        for level, (cells, step, ratios) in enumerate(zip(self.cells, self.steps, self.ratios, strict=True)):
            side = self.sizes[level]
            between = np.sqrt(side * self.sizes[level + 1])
            shapes = [(side, side), (between, between)]
            shapes += [(side * np.sqrt(ratio), side / np.sqrt(ratio)) for ratio in ratios[1:]]
            centres = (np.arange(cells) + 0.5) * step
            grid = np.empty((cells, cells, len(shapes), 4))
            grid[..., 0], grid[..., 1] = centres[:, None], centres[:, None, None]
            grid[..., 2:] = shapes
            levels.append(grid.reshape(-1, 4))
        return levels


_STEPS_512 = (16, 32, 64, 128, 256, 512)
_SIZES_VOC = (51.2, 102.4, 189.4, 276.4, 363.52, 450.6, 492)
SPECS = {
    "ssd_512_resnet50_v1_voc": Spec("resnet50_v1", "voc", 512, _SIZES_VOC, _STEPS_512),
    "ssd_512_resnet50_v1_coco": Spec(
        "resnet50_v1", "coco", 512, (51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72), _STEPS_512
    ),
    "ssd_512_resnet101_v2_voc": Spec("resnet101_v2", "voc", 512, _SIZES_VOC, _STEPS_512),
    "ssd_512_mobilenet1.0_voc": Spec("mobilenet1.0", "voc", 512, _SIZES_VOC, _STEPS_512),
    "ssd_512_mobilenet1.0_coco": Spec("mobilenet1.0", "coco", 512, _SIZES_VOC, _STEPS_512),
    "ssd_300_vgg16_atrous_voc": Spec(
        "vgg16_atrous", "voc", 300, (30, 60, 111, 162, 213, 264, 315), (8, 16, 32, 64, 100, 300)
    ),
    "ssd_512_vgg16_atrous_coco": Spec(
        "vgg16_atrous", "coco", 512, (51.2, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6), (8, *_STEPS_512)
    ),
}


class Dense(nn.Module):  # type: ignore[misc]
    """(N, 3, side, side) → offsets from the default boxes (N, A, 4), class logits (N, A, 1 + classes)."""

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__()
        self.columns = 1 + classes
        self.features = _features(spec)
        shapes = [1 + len(ratios) for ratios in spec.ratios]
        levels = list(zip(self.features.channels, shapes, strict=True))
        self.class_predictors = nn.ModuleList(nn.Conv2d(one, n * self.columns, 3, padding=1) for one, n in levels)
        self.box_predictors = nn.ModuleList(nn.Conv2d(one, n * 4, 3, padding=1) for one, n in levels)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.features(image)
        return _joined(maps, self.box_predictors, 4), _joined(maps, self.class_predictors, self.columns)


def _features(spec: Spec) -> nn.Module:
    if spec.backbone == "vgg16_atrous":
        return backbones.Vgg16Atrous(_EXTRAS_300 if spec.side == 300 else _EXTRAS_512)
    if spec.backbone == "mobilenet1.0":
        backbone: nn.Module = backbones.MobileNetFeatures()
    elif spec.backbone == "resnet50_v1":
        backbone = backbones.ResNetV1((3, 4, 6, 3))
    else:
        backbone = backbones.ResNetV2((3, 4, 23))
    return backbones.Expanded(backbone, _APPENDED)


def _joined(maps: list[Tensor], predictors: nn.ModuleList, values: int) -> Tensor:
    """(N, shapes * values, H, W) of each level → (N, boxes of all levels, values): rows, columns, shapes."""
    each = [predictor(one).permute(0, 2, 3, 1) for one, predictor in zip(maps, predictors, strict=True)]
    return torch.cat([one.reshape(one.shape[0], -1, values) for one in each], 1)
