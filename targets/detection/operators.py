"""What detectors need beside tensor arithmetic, as operators of torch: ``torch.ops.fleet.*``.

Every shape is fixed: what is found fills the first rows of a result, and a count says how many they are. So a detector
that uses them is one exported program, in which no size depends on a picture. What is here computes the reference;
targets have kernels of their own for them.

Importing this module registers the operators; it needs torch and torchvision.
"""

from __future__ import annotations

import math

import torch
import torchvision
from torch import Tensor

#: Up to so many boxes torchvision moves classes apart instead of taking them one by one, which rounds otherwise
#: (torchvision.ops.boxes.batched_nms: 4000 numbers on a CPU).
SHIFTED_BOXES = 1000
#: torchvision.ops.poolers.LevelMapper, after Lin et al. 2016 (arXiv:1612.03144), equation 1.
CANONICAL_SIZE, CANONICAL_LEVEL, LEVEL_EPS = 224, 4, 1e-6


@torch.library.custom_op("fleet::class_nms", mutates_args=())  # type: ignore[untyped-decorator]
def class_nms(
    boxes: Tensor,
    scores: Tensor,
    score_threshold: float,
    iou_threshold: float,
    per_class: int,
    total: int,
    most: int,
    min_size: float,
    shifted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Non-maximum suppression within each class, and the best of what is left, best first.

    Args:
        boxes: (N, 1, B, 4), shared by all classes, or (N, C, B, 4): corners x0, y0, x1, y1.
        scores: (N, C, B).
        score_threshold: candidates score more than this.
        iou_threshold: a box goes when a better one of its class overlaps it by more than this.
        per_class: so many of the best candidates of each class take part; 0: all.
        total: so many of the best candidates of all classes take part, after ``per_class``; 0: all.
        most: rows of the results.
        min_size: candidates are at least so wide and so high; 0: any.
        shifted: whether to round as torchvision does: up to 1,000 candidates of a picture overlap after each class
            was moved away from the others, by the largest coordinate and one for each number of its class.

    Returns:
        boxes (N, most, 4), scores (N, most), labels (N, most) int64: the class 0..C-1, and counts (N,) int32. Rows from
        the count on are zeros. Equal scores keep the order of class and box.
    """
    found = [
        _class_nms(*each, score_threshold, iou_threshold, per_class, total, most, min_size, shifted)
        for each in zip(boxes, scores, strict=True)
    ]
    kept, best, labels, counts = (torch.stack(each) for each in zip(*found, strict=True))
    return kept, best, labels, counts


def _class_nms(
    boxes: Tensor,
    scores: Tensor,
    score_threshold: float,
    iou_threshold: float,
    per_class: int,
    total: int,
    most: int,
    min_size: float,
    shifted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    valid = scores > score_threshold
    if min_size > 0:
        sides = boxes[..., 2:] - boxes[..., :2]
        valid &= (sides >= min_size).all(-1)
    if per_class:
        order = scores.masked_fill(~valid, -math.inf).sort(dim=1, descending=True, stable=True).indices[:, :per_class]
        valid &= torch.zeros_like(valid).scatter_(1, order, True)
    label, box = valid.nonzero(as_tuple=True)
    order = scores[label, box].sort(dim=0, descending=True, stable=True).indices[: total or None]
    label, box = label[order], box[order]
    corners, best = boxes[label if len(boxes) > 1 else 0, box], scores[label, box]
    if shifted and len(best) <= SHIFTED_BOXES:
        keep = _shifted(corners, best, label, iou_threshold)
    else:
        kept = torch.zeros_like(best, dtype=torch.bool)
        for one in label.unique():
            (of_class,) = (label == one).nonzero(as_tuple=True)
            kept[of_class[torchvision.ops.nms(corners[of_class], best[of_class], iou_threshold)]] = True
        (keep,) = kept.nonzero(as_tuple=True)
    keep = keep[:most]

    def filled(values: Tensor) -> Tensor:
        rows = values.new_zeros((most, *values.shape[1:]))
        rows[: len(keep)] = values[keep]
        return rows

    count = torch.tensor(len(keep), dtype=torch.int32, device=scores.device)
    return filled(corners), filled(best), filled(label), count


def _shifted(corners: Tensor, scores: Tensor, label: Tensor, iou_threshold: float) -> Tensor:
    if not len(corners):
        return label
    offsets = label.to(corners) * (corners.max() + 1)
    return torchvision.ops.nms(corners + offsets[:, None], scores, iou_threshold)


@class_nms.register_fake  # type: ignore[untyped-decorator]
def _(
    boxes: Tensor,
    scores: Tensor,
    score_threshold: float,
    iou_threshold: float,
    per_class: int,
    total: int,
    most: int,
    min_size: float,
    shifted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = scores.shape[0]
    return (
        boxes.new_empty((batch, most, 4)),
        scores.new_empty((batch, most)),
        scores.new_empty((batch, most), dtype=torch.int64),
        scores.new_empty((batch,), dtype=torch.int32),
    )


@torch.library.custom_op("fleet::roi_align", mutates_args=())  # type: ignore[untyped-decorator]
def roi_align(
    features: list[Tensor], rois: Tensor, scales: list[float], size: int, sampling: int, aligned: bool
) -> Tensor:
    """RoIAlign (He et al. 2017, arXiv:1703.06870) on the level of a pyramid that fits each box's size.

    Args:
        features: of each level, (N, H, W, C): channels last, as they are read.
        rois: (R, 5): number of the picture, then corners x0, y0, x1, y1 in pixels of the network's input.
        scales: of each level, its cells for a pixel, powers of two; finest first.
        size: cells of a result along a side.
        sampling: points along a side of such a cell.
        aligned: whether boxes are moved by half a cell.

    Returns:
        (R, C, size, size). One level is what it is; of several, equation 1 of Lin et al. 2016 chooses.
    """
    planes = [level.permute(0, 3, 1, 2) for level in features]

    def pooled(level: int, some: Tensor) -> Tensor:
        return torchvision.ops.roi_align(planes[level], some, size, scales[level], sampling, aligned)

    if len(planes) == 1:
        return pooled(0, rois)
    lowest, highest = (round(-math.log2(scale)) for scale in (scales[0], scales[-1]))
    sides = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
    levels = torch.floor(CANONICAL_LEVEL + torch.log2(sides / CANONICAL_SIZE) + LEVEL_EPS)
    levels = levels.clamp(lowest, highest).to(torch.int64) - lowest
    result = rois.new_zeros((len(rois), features[0].shape[-1], size, size))
    for level in range(len(planes)):
        (of_level,) = (levels == level).nonzero(as_tuple=True)
        result[of_level] = pooled(level, rois[of_level])
    return result


@roi_align.register_fake  # type: ignore[untyped-decorator]
def _(features: list[Tensor], rois: Tensor, scales: list[float], size: int, sampling: int, aligned: bool) -> Tensor:
    return rois.new_empty((rois.shape[0], features[0].shape[-1], size, size))


@torch.library.custom_op("fleet::begin_rows", mutates_args=())  # type: ignore[untyped-decorator]
def begin_rows(rows: list[Tensor], counts: Tensor) -> list[Tensor]:
    """The same tensors: what is computed of them is needed row by row, and only where there is something.

    Args:
        rows: each (N * M, …): M rows of each of N pictures.
        counts: (N,) int32: how many of a picture's rows are something; the others need not be computed.

    What comes between this and :func:`end_rows` must compute each row of its results from the same row of ``rows`` and
    from tensors that are no rows. Everything that is computed of ``rows`` must go through :func:`end_rows`.
    """
    return [each.clone() for each in rows]


@begin_rows.register_fake  # type: ignore[untyped-decorator]
def _(rows: list[Tensor], counts: Tensor) -> list[Tensor]:
    return [torch.empty_like(each) for each in rows]


@torch.library.custom_op("fleet::end_rows", mutates_args=())  # type: ignore[untyped-decorator]
def end_rows(rows: list[Tensor], counts: Tensor) -> list[Tensor]:
    """What was computed of :func:`begin_rows`, each (N * M, …): zeros in the rows that are nothing."""
    most = rows[0].shape[0] // counts.shape[0]
    row = torch.arange(rows[0].shape[0], device=counts.device)
    something = row % most < counts[row // most]
    return [torch.where(something.view(-1, *[1] * (each.ndim - 1)), each, 0) for each in rows]


@end_rows.register_fake  # type: ignore[untyped-decorator]
def _(rows: list[Tensor], counts: Tensor) -> list[Tensor]:
    return [torch.empty_like(each) for each in rows]


@torch.library.custom_op("fleet::paste_masks", mutates_args=())  # type: ignore[untyped-decorator]
def paste_masks(masks: Tensor, boxes: Tensor, counts: Tensor, height: int, width: int) -> Tensor:
    """Masks of boxes laid into whole pictures, as torchvision.models.detection.roi_heads.paste_masks_in_image does.

    Args:
        masks: (N, M, S, S) probabilities within each box.
        boxes: (N, M, 4): corners in pixels.
        counts: (N,) int32: how many of a picture's rows are something.

    Returns:
        (N, M, height, width) uint8: the probability times 256, rounded down, 255 at most: 128 is one half. Zeros
        outside the boxes and in the rows that are nothing.
    """
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    result = masks.new_zeros((*masks.shape[:2], height, width), dtype=torch.uint8)
    for picture, count in enumerate(counts.tolist()):
        if count:
            of_picture = masks[picture, :count, None], boxes[picture, :count]
            pasted = paste_masks_in_image(*of_picture, (height, width))[:, 0]
            result[picture, :count] = (pasted * 256).floor().clamp(0, 255).to(torch.uint8)
    return result


@paste_masks.register_fake  # type: ignore[untyped-decorator]
def _(masks: Tensor, boxes: Tensor, counts: Tensor, height: int, width: int) -> Tensor:
    return masks.new_empty((*masks.shape[:2], height, width), dtype=torch.uint8)
