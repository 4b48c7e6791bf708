"""Non-maximum suppression in NumPy chooses exactly what the torch operator chooses."""

from __future__ import annotations

import time
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

import targets.detection.operators as operators
from targets.detection import select


def _both(boxes: np.ndarray[Any, Any], scores: np.ndarray[Any, Any], **how: Any) -> None:
    found = select.class_nms(boxes, scores, **how)
    wanted = torch.ops.fleet.class_nms(
        torch.from_numpy(boxes),
        torch.from_numpy(scores),
        how["score_threshold"],
        how["iou_threshold"],
        how.get("per_class", 0),
        how.get("total", 0),
        how["most"],
        how.get("min_size", 0.0),
        how.get("shifted", False),
    )
    for name, ours, theirs in zip(found._fields, found, wanted, strict=True):
        assert ours.dtype == theirs.numpy().dtype, name
        np.testing.assert_array_equal(ours, theirs.numpy(), err_msg=name)


def _drawn(seed: int, shape: tuple[int, int, int], *, shared: bool, coarse: bool, size: float) -> tuple[Any, Any]:
    """Boxes about a few objects, and scores; coarse ones have many ties, and IoUs that are exact fractions."""
    noise = np.random.default_rng(seed)
    batch, classes, count = shape
    objects = noise.random((batch, 1 if shared else classes, max(1, count // 8), 4))
    boxes = objects[:, :, noise.integers(0, objects.shape[2], count)] + noise.normal(0, 0.05, (1, 1, count, 4))
    corners = np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1) * size
    scores = noise.random((batch, classes, count)) ** 3
    if coarse:
        corners, scores = np.round(corners * 8 / size) * size / 8, np.round(scores * 8) / 8
    return corners.astype(np.float32), scores.astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 300)),
    shared=st.booleans(),
    coarse=st.booleans(),
    size=st.sampled_from([1.0, 300.0]),
    score_threshold=st.sampled_from([0.0, 0.01, 0.25, 0.5, 2.0]),
    iou_threshold=st.sampled_from([0.0, 0.2, 0.45, 0.5, 1.0]),
    per_class=st.sampled_from([0, 1, 7, 100]),
    total=st.sampled_from([0, 1, 30, 400]),
    most=st.sampled_from([1, 10, 100, 2000]),
    min_size=st.sampled_from([0.0, 0.125]),
    shifted=st.booleans(),
)
def test_it_is_the_operator(
    seed: int, shape: tuple[int, int, int], shared: bool, coarse: bool, size: float, **how: Any
) -> None:
    _both(*_drawn(seed, shape, shared=shared, coarse=coarse, size=size), **how)


def test_more_candidates_than_are_shifted_and_than_one_chunk() -> None:
    boxes, scores = _drawn(3, (1, 4, 2500), shared=True, coarse=False, size=300.0)
    for per_class in (0, 300):
        _both(boxes, scores, score_threshold=0.05, iou_threshold=0.6, per_class=per_class, most=4000, shifted=True)


def test_nothing_scores_enough() -> None:
    boxes, scores = _drawn(4, (2, 3, 20), shared=True, coarse=False, size=1.0)
    found = select.class_nms(boxes, scores, score_threshold=1.0, iou_threshold=0.5, most=5, shifted=True)
    assert not found.counts.any() and not found.boxes.any() and not found.scores.any() and not found.labels.any()


@pytest.mark.parametrize("shifted", [False, True])
def test_boxes_without_an_area_stay(shifted: bool) -> None:
    boxes = np.array([[[[0.5, 0.5, 0.5, 0.5]] * 3]], np.float32)
    scores = np.array([[[0.9, 0.8, 0.7]]], np.float32)
    _both(boxes, scores, score_threshold=0.1, iou_threshold=0.5, most=4, shifted=shifted)
    assert select.class_nms(boxes, scores, score_threshold=0.1, iou_threshold=0.5, most=4).counts.tolist() == [3]


def test_both_know_the_same_bound() -> None:
    assert select.SHIFTED_BOXES == operators.SHIFTED_BOXES


def test_all_boxes_of_all_classes_take_no_minute() -> None:
    """8,732 boxes of 80 classes that are all candidates: nothing grows with the square of that."""
    boxes, scores = _drawn(5, (1, 80, 8732), shared=True, coarse=False, size=1.0)
    start = time.process_time()
    found = select.class_nms(boxes, scores, score_threshold=0.0, iou_threshold=0.5, per_class=200, most=200)
    assert time.process_time() - start < 10
    assert found.counts.tolist() == [200]
