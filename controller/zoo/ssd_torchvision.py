"""torchvision's SSDs, whatever their backbone, as what :mod:`controller.zoo.ssd` makes whole detectors of."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import _utils as detection_utils
from torchvision.models.detection import image_list
from torchvision.models.detection.ssd import SSD

from controller.zoo.ssd import Decoding
from targets.base import ModelError, Preprocess


class Dense(nn.Module):  # type: ignore[misc]
    """(N, 3, H, W) → offsets (N, A, 4) and class logits (N, A, columns), of a ``SSD``'s own backbone and head."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.backbone, self.head = network.backbone, network.head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        found = self.head([features] if isinstance(features, Tensor) else list(features.values()))
        return found["bbox_regression"], found["cls_logits"]


def check(network: Any) -> None:
    """Raises :class:`ModelError` (``bad-model``) for a SSD that finds its boxes otherwise than torchvision's."""
    for method in ("forward", "postprocess_detections"):
        if getattr(type(network), method) is not getattr(SSD, method):
            raise _refused(f"its {method}() is its own, not SSD's")
    if type(network.box_coder) is not detection_utils.BoxCoder:
        raise _refused(f"its box_coder is a {type(network.box_coder).__name__}, no BoxCoder")
    if network.transform.fixed_size is None:
        raise _refused("its transform has no fixed_size")


def preprocess(network: Any) -> Preprocess:
    transform = network.transform
    width, height = transform.fixed_size
    return Preprocess(
        size=(height, width), filter="bilinear", mean=tuple(transform.image_mean), std=tuple(transform.image_std)
    )


def decoding(network: Any) -> Decoding:
    """How the network finds boxes, by what is set in it; its default boxes are those its own generator makes."""
    height, width = preprocess(network).size
    blank = torch.zeros(1, 3, height, width)
    with torch.no_grad():
        features = network.backbone(blank)
        maps = [features] if isinstance(features, Tensor) else list(features.values())
        (corners,) = network.anchor_generator(image_list.ImageList(blank, [(height, width)]), maps)
    boxes = corners.double().numpy() / np.array([width, height, width, height])
    across, down, wide, high = (1 / weight for weight in network.box_coder.weights)
    return Decoding(
        np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1),
        (height, width),
        score_threshold=network.score_thresh,
        iou_threshold=network.nms_thresh,
        per_class=network.topk_candidates,
        most=network.detections_per_img,
        variances=(across, down, wide, high),
        clip=True,
        max_log_size=network.box_coder.bbox_xform_clip,
        coordinates="pixels",
        shifted=True,
    )


def _refused(why: str) -> ModelError:
    return ModelError(f"this SSD cannot be exported: {why}", hint="those that compute as torchvision's can be")
