"""The post-processing of single-shot detectors in NumPy: what a `Postprocess` of kind ``ssd`` says, carried out.

The same arithmetic, in float32, as the network has inside where its kind is ``detections``
(:class:`controller.zoo.ssd.Ssd`): both give the same boxes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from targets.base import FleetError, Postprocess
from targets.detection.select import Floats, Selected, class_nms


def detect(
    locations: npt.NDArray[Any], logits: npt.NDArray[Any], postprocess: Postprocess, size: tuple[int, int]
) -> Selected:
    """What a dense part's outputs say: ``postprocess.max_boxes`` rows for each picture of the batch.

    ``locations`` is (N, A, 4) and ``logits`` (N, A, 1 + classes), or boxes last (N, 4, A) and (N, 1 + classes, A);
    ``size`` is height and width of the network's input. Boxes are in ``postprocess.coordinates``, labels count the
    classes without the background. Raises :class:`FleetError` (``bad-output``) for other shapes.
    """
    last = postprocess.boxes_last
    count = len(postprocess.anchors)
    boxes_axis, values_axis = (2, 1) if last else (1, 2)
    if (
        locations.ndim != 3
        or logits.ndim != 3
        or len(locations) != len(logits)
        or locations.shape[values_axis] != 4
        or locations.shape[boxes_axis] != count
        or logits.shape[boxes_axis] != count
        or logits.shape[values_axis] < 2
    ):
        wanted = (
            f"(N, 4, {count}), (N, classes + 1, {count})" if last else f"(N, {count}, 4), (N, {count}, classes + 1)"
        )
        raise FleetError(
            f"the outputs have shapes {locations.shape}, {logits.shape}, wanted {wanted}", code="bad-output"
        )
    locations, logits = locations.astype(np.float32, copy=False), logits.astype(np.float32, copy=False)
    if last:
        locations = locations.transpose(0, 2, 1)
    scores = logits if postprocess.softmaxed else softmax(logits, values_axis)
    scores = scores[:, 1:] if last else scores[..., 1:].transpose(0, 2, 1)
    if postprocess.best_boxes:
        scores = of_best_boxes(scores, postprocess.best_boxes, postprocess.box_threshold)
    return class_nms(
        decode(locations, postprocess, size)[:, None],
        scores,
        score_threshold=postprocess.score_threshold,
        iou_threshold=postprocess.iou_threshold,
        most=postprocess.max_boxes,
        per_class=postprocess.per_class,
        total=postprocess.total,
        shifted=postprocess.shifted,
    )


def of_best_boxes(scores: Floats, count: int, threshold: float) -> Floats:
    """``scores`` (N, C, A) of the ``count`` boxes with the best score of any class, above ``threshold``; no others take
    part: theirs are below every score."""
    best = scores.max(1)
    order = np.argsort(-best, axis=1, kind="stable")
    keep = np.zeros(best.shape, np.bool_)
    np.put_along_axis(keep, order[:, :count], True, axis=1)
    keep &= best > np.float32(threshold)
    kept: Floats = np.where(keep[:, None], scores, np.float32(-1))
    return kept


def softmax(logits: Floats, axis: int) -> Floats:
    """Probabilities along an axis."""
    raised = np.exp(logits - logits.max(axis, keepdims=True))
    probabilities: Floats = raised / raised.sum(axis, keepdims=True)
    return probabilities


def decode(locations: Floats, postprocess: Postprocess, size: tuple[int, int]) -> Floats:
    """Offsets (N, A, 4) from the default boxes → corners (N, A, 4) in ``postprocess.coordinates``."""
    height, width = size if postprocess.coordinates == "pixels" else (1, 1)
    default = _default_boxes(postprocess.anchors) * np.array([width, height, width, height], np.float32)
    offsets = locations * np.array(postprocess.variances, np.float32)
    centres = default[:, :2] + offsets[..., :2] * default[:, 2:]
    log_sizes = offsets[..., 2:]
    if postprocess.max_log_size is not None:
        log_sizes = np.minimum(log_sizes, np.float32(postprocess.max_log_size))
    with np.errstate(over="ignore"):
        halves = default[:, 2:] * np.exp(log_sizes) * np.float32(0.5)
    corners: Floats = np.concatenate([centres - halves, centres + halves], -1)
    return np.clip(corners, 0, np.array([width, height] * 2, np.float32)) if postprocess.clip else corners


@lru_cache(maxsize=4)
def _default_boxes(anchors: tuple[tuple[float, float, float, float], ...]) -> Floats:
    return np.array(anchors, np.float32).reshape(-1, 4)
