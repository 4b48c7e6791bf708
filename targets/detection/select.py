"""Class-wise non-maximum suppression in NumPy: what ``torch.ops.fleet.class_nms`` computes, where there is no torch.

The arithmetic is the operator's, in float32 and in its order, so both choose the same boxes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

#: ``targets.detection.operators.SHIFTED_BOXES``, which needs torch to be imported.
SHIFTED_BOXES = 1000
#: So many candidates are compared with each other at once; what they cost grows with the square.
_CHUNK = 256


class Selected(NamedTuple):
    """Rows of each picture, best first; from the count on they are zeros.

    ``boxes`` (N, most, 4) float32 corners, ``scores`` (N, most) float32, ``labels`` (N, most) int64, ``counts`` (N,)
    int32.
    """

    boxes: Floats
    scores: Floats
    labels: Indices
    counts: npt.NDArray[np.int32]


def class_nms(
    boxes: Floats,
    scores: Floats,
    *,
    score_threshold: float,
    iou_threshold: float,
    most: int,
    per_class: int = 0,
    total: int = 0,
    min_size: float = 0.0,
    shifted: bool = False,
) -> Selected:
    """The best boxes of each picture, less those that a better one of their class overlaps.

    ``boxes`` is (N, 1, B, 4), shared by all classes, or (N, C, B, 4), ``scores`` (N, C, B), both float32. The other
    arguments are the operator's: see :func:`targets.detection.operators.class_nms`.
    """
    batch = len(scores)
    result = Selected(
        np.zeros((batch, most, 4), np.float32),
        np.zeros((batch, most), np.float32),
        np.zeros((batch, most), np.int64),
        np.zeros(batch, np.int32),
    )
    for picture in range(batch):
        label, box = _candidates(boxes[picture], scores[picture], score_threshold, per_class, total, min_size)
        corners = boxes[picture][label if boxes.shape[1] > 1 else 0, box]
        if shifted and len(label) <= SHIFTED_BOXES:
            keep = nms(_apart(corners, label), np.zeros_like(label), iou_threshold, most)
        else:
            keep = nms(corners, label, iou_threshold, most)
        count = len(keep)
        result.boxes[picture, :count] = corners[keep]
        result.scores[picture, :count] = scores[picture][label[keep], box[keep]]
        result.labels[picture, :count] = label[keep]
        result.counts[picture] = count
    return result


def nms(boxes: Floats, groups: Indices, iou_threshold: float, most: int) -> Indices:
    """Which of ``boxes`` (n, 4), best first, are the first ``most`` that no better one of their group overlaps by more
    than ``iou_threshold``: their indices, ascending.
    """
    areas = _areas(boxes)
    kept = np.zeros(0, np.int64)

    def rivals(better: Indices, worse: Indices) -> Flags:
        same: Flags = groups[better][:, None] == groups[worse][None, :]
        same &= _overlaps(boxes[better], areas[better], boxes[worse], areas[worse]) > iou_threshold
        return same

    for start in range(0, len(boxes), _CHUNK):
        chunk = np.arange(start, min(start + _CHUNK, len(boxes)))
        chunk = chunk[~rivals(kept, chunk).any(0)]
        against = rivals(chunk, chunk)
        stays = np.ones(len(chunk), np.bool_)
        for row in np.flatnonzero(np.triu(against, 1).any(1)):
            if stays[row]:
                stays[row + 1 :] &= ~against[row, row + 1 :]
        kept = np.concatenate([kept, chunk[stays]])
        if len(kept) >= most:
            break
    return kept[:most]


def _candidates(
    boxes: Floats, scores: Floats, score_threshold: float, per_class: int, total: int, min_size: float
) -> tuple[Indices, Indices]:
    """Class and box of each candidate, best first; of equal scores in their order."""
    valid = scores > np.float32(score_threshold)
    if min_size > 0:
        valid &= (boxes[..., 2:] - boxes[..., :2] >= np.float32(min_size)).all(-1)
    if per_class and (valid.sum(1) > per_class).any():
        # Whatever scores less than the last that takes part need not be sorted.
        masked = np.where(valid, scores, -np.inf)
        last = np.partition(masked, -per_class, axis=1)[:, -per_class, None]
        valid &= masked >= last
    label, box = np.nonzero(valid)
    order = np.argsort(-scores[label, box], kind="stable")
    label, box = label[order], box[order]
    if per_class:
        # Sorted by class, what a candidate's place is in its class.
        by_class = np.argsort(label, kind="stable")
        firsts = np.searchsorted(label[by_class], np.arange(len(scores)))
        place = np.empty_like(label)
        place[by_class] = np.arange(len(label)) - firsts[label[by_class]]
        label, box = label[place < per_class], box[place < per_class]
    return (label[:total], box[:total]) if total else (label, box)


def _apart(boxes: Floats, label: Indices) -> Floats:
    """Each class moved away from the others, so that none overlap: torchvision's way to take all at once."""
    if not len(boxes):
        return boxes
    offsets: Floats = label.astype(np.float32) * (boxes.max() + np.float32(1))
    moved: Floats = boxes + offsets[:, None]
    return moved


def _areas(boxes: Floats) -> Floats:
    areas: Floats = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas


def _overlaps(first: Floats, first_areas: Floats, second: Floats, second_areas: Floats) -> npt.NDArray[np.float64]:
    """IoU of every pair, (a, b), rounded to float32 as torchvision's and then widened: thresholds are not rounded."""
    sides = [
        np.maximum(
            np.minimum(first[:, None, high], second[None, :, high])
            - np.maximum(first[:, None, low], second[None, :, low]),
            0,
        )
        for low, high in ((0, 2), (1, 3))
    ]
    shared = sides[0] * sides[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        # Boxes without an area overlap nothing: 0 / 0 is no number, and no number is more than the threshold.
        overlaps: npt.NDArray[np.float64] = (shared / (first_areas[:, None] + second_areas - shared)).astype(np.float64)
    return overlaps
