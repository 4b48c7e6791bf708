"""The training side of a single-shot detector: matching, box encoding and the multibox loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

VARIANCES = (0.1, 0.1, 0.2, 0.2)
#: A default box with a higher IoU than the first is an object's, with a lower one than the second is background;
#: those in between teach nothing.
POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.4
#: Background boxes that count for each box that is an object's: the hardest ones.
NEGATIVES_PER_POSITIVE = 3


class Truth(NamedTuple):
    """Objects of a batch, padded: ``boxes`` (N, M, 4) as x0, y0, x1, y1 in 0..1; ``labels`` (N, M), -1 is none."""

    boxes: Tensor
    labels: Tensor


def corners(centred: Tensor) -> Tensor:
    return torch.cat([centred[..., :2] - centred[..., 2:] / 2, centred[..., :2] + centred[..., 2:] / 2], -1)


def overlaps(first: Tensor, second: Tensor) -> Tensor:
    """IoU of every box of (…, A, 4) with every one of (…, B, 4), as corners: (…, A, B)."""
    low = torch.maximum(first[..., :, None, :2], second[..., None, :, :2])
    high = torch.minimum(first[..., :, None, 2:], second[..., None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (first, second)]
    return shared / (areas[0][..., :, None] + areas[1][..., None, :] - shared).clamp(min=1e-9)


def match(anchors: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
    """For each default box its object's index (N, A), and its class (N, A): label + 1, 0 background, -1 ignored."""
    iou = overlaps(corners(anchors)[None], truth.boxes)
    iou = iou.masked_fill(truth.labels[:, None, :] < 0, -1.0)
    # Each object's best default box is its own, whatever the IoU: no object goes untaught.
    best = iou.argmax(1)
    forced = torch.zeros_like(iou).scatter_(1, best[:, None, :], 2.0)
    iou = iou + forced.masked_fill(truth.labels[:, None, :] < 0, 0.0)
    quality, chosen = iou.max(2)
    classes = truth.labels.gather(1, chosen) + 1
    classes = torch.where(quality >= POSITIVE_IOU, classes, torch.where(quality < NEGATIVE_IOU, 0, -1))
    return chosen, classes


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (…, A, 4) as corners → offsets from their default boxes (A, 4), in units of the variances."""
    centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    offsets = torch.cat([(centre - anchors[:, :2]) / anchors[:, 2:], torch.log(size / anchors[:, 2:])], -1)
    return offsets / offsets.new_tensor(VARIANCES)


def multibox_loss(locations: Tensor, logits: Tensor, anchors: Tensor, truth: Truth) -> Tensor:
    """Smooth L1 over matched boxes plus cross-entropy over them and the hardest background, per matched box."""
    chosen, classes = match(anchors, truth)
    positive = classes > 0
    count = positive.sum().clamp(min=1)
    wanted = encode(truth.boxes.gather(1, chosen[..., None].expand(-1, -1, 4)), anchors)
    where = functional.smooth_l1_loss(locations[positive], wanted[positive], reduction="sum", beta=0.2)

    each = functional.cross_entropy(logits.transpose(1, 2), classes.clamp(min=0), reduction="none")
    background = torch.where(classes == 0, each.detach(), -torch.inf)
    rank = background.argsort(1, descending=True).argsort(1)
    hard = (classes == 0) & (rank < NEGATIVES_PER_POSITIVE * positive.sum(1, keepdim=True))
    what = each[positive | hard].sum()
    return (2.0 * where + what) / count
