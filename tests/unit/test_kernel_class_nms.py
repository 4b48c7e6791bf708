"""Non-maximum suppression within classes against the operator's reference, in every bit."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.cpu.compile import tvm_target
from targets.cpu.kernels import class_nms as kernels
from targets.cpu.kernels.class_nms import ClassNms, float_below
from targets.cpu.machine import X86_MACHINE
from targets.detection import operators

Array = npt.NDArray[Any]
TARGET = tvm_target(X86_MACHINE, X86_MACHINE.processor("host"))


@cache
def compiled(spec: ClassNms) -> Any:
    return tvm.compile(tvm.IRModule({"main": kernels.class_nms(spec, "main")}), target=TARGET)["main"]


def by_kernel(spec: ClassNms, boxes: Array, scores: Array) -> list[Array]:
    rows = (spec.batch, spec.most)
    results = [np.full((*rows, 4), np.nan, "float32"), np.full(rows, np.nan, "float32")]
    results += [np.full(rows, -1, "int64"), np.full(spec.batch, -1, "int32")]
    arguments = [tvm.runtime.tensor(array) for array in (boxes, scores, *results)]
    compiled(spec)(*arguments)
    return [argument.numpy() for argument in arguments[2:]]


def by_reference(spec: ClassNms, boxes: Array, scores: Array) -> list[Array]:
    how = (spec.score_threshold, spec.iou_threshold, spec.per_class, spec.total, spec.most, spec.min_size, spec.shifted)
    found = operators.class_nms(torch.from_numpy(boxes), torch.from_numpy(scores), *how)
    return [each.numpy() for each in found]


def check(spec: ClassNms, boxes: Array, scores: Array) -> list[Array]:
    expected = by_reference(spec, boxes, scores)
    for mine, its in zip(by_kernel(spec, boxes, scores), expected, strict=True):
        np.testing.assert_array_equal(mine, its)
    return expected


def scene(spec: ClassNms, seed: int, *, equal: bool = False, grid: bool = False, logits: bool = False) -> list[Array]:
    """Boxes and scores; ``equal`` repeats scores, ``grid`` makes overlaps that are exactly at thresholds."""
    noise = np.random.default_rng(seed)
    shape = (spec.batch, spec.groups, spec.boxes, 2)
    first, sides = noise.random(shape) * 60 - 10, noise.random(shape) * 30
    if grid:
        first, sides = np.round(first / 10) * 10, np.round(sides / 10) * 10
    scores = noise.standard_normal((spec.batch, spec.classes, spec.boxes)) * 2
    if not logits:
        scores = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    if equal:
        scores = np.round(scores * 8) / 8
    return [np.concatenate([first, first + sides], -1).astype("float32"), scores.astype("float32")]


SPEC = ClassNms(1, 1, 3, 200, 0.1, 0.5, 0, 0, 20, 0.0, False, 16)


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 2),
    classes=st.integers(1, 5),
    boxes=st.integers(1, 300),
    own_boxes=st.booleans(),
    score_threshold=st.sampled_from((-np.inf, -1.0, 0.0, 0.1, 0.3, 2.0)),
    iou_threshold=st.sampled_from((0.0, 0.2, 1 / 3, 0.5, 0.7, 1.0)),
    per_class=st.sampled_from((0, 1, 7, 400)),
    total=st.sampled_from((0, 1, 30, 400)),
    most=st.integers(1, 120),
    min_size=st.sampled_from((0.0, 0.01, 10.0)),
    shifted=st.booleans(),
    lanes=st.sampled_from((16, 8, 4)),
)
def test_every_bit_is_the_references(
    batch: int, classes: int, boxes: int, own_boxes: bool, lanes: int, **how: Any
) -> None:
    how["score_threshold"] = float(np.float32(how["score_threshold"]))
    how["min_size"] = float(np.float32(how["min_size"]))
    fitting = min(lanes, 1 << boxes.bit_length() - 1)
    spec = ClassNms(batch, classes if own_boxes else 1, classes, boxes, lanes=fitting, **how)
    for seed, (equal, grid, logits) in enumerate(product((False, True), repeat=3)):
        check(spec, *scene(spec, seed, equal=equal, grid=grid, logits=logits))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("classes", [3, 9])
def test_more_candidates_than_are_moved_apart(classes: int, shifted: bool) -> None:
    """Around the number from which on torchvision takes classes one by one."""
    spec = replace(SPEC, classes=classes, boxes=333, shifted=shifted, score_threshold=-np.inf, most=1000)
    check(spec, *scene(spec, 0, logits=True))
    check(replace(spec, total=1000), *scene(spec, 1, logits=True))
    check(replace(spec, per_class=100, min_size=5.0), *scene(spec, 2, logits=True))


def test_classes_moved_apart_may_still_meet() -> None:
    """Corners below zero reach into the next class: torchvision lets them suppress each other."""
    boxes = np.array([[[[-20, -20, 1, 1], [-40, -40, -1, -1]]]], "float32")
    scores = np.array([[[0.9, 0], [0, 0.8]]], "float32")
    spec = replace(SPEC, classes=2, boxes=2, lanes=1, iou_threshold=0.05, shifted=True)
    assert check(spec, boxes, scores)[3] == [1]
    assert check(replace(spec, shifted=False), boxes, scores)[3] == [2]


def test_nothing_is_found_and_one_hides_all() -> None:
    spec = replace(SPEC, boxes=1000)
    boxes, scores = scene(spec, 3)
    assert check(replace(spec, score_threshold=1.0), boxes, scores)[3] == [0]
    boxes[:] = boxes[:, :, :1]
    # The rounds after the first one have to come to the end.
    assert check(replace(spec, score_threshold=0.0, most=500), boxes, scores)[3] == [3]


def test_boxes_of_nothing_overlap_nothing() -> None:
    spec = replace(SPEC, classes=1)
    boxes, scores = scene(spec, 4)
    boxes[..., 2:] = boxes[..., :2]
    assert check(replace(spec, score_threshold=-1.0, most=200), boxes, scores)[3] == [200]


def test_rounded_down_or_to_nearest() -> None:
    """A threshold between two floats is passed by what passes the lower one."""
    for number in (0.1, 0.45, 0.5, 0.7, 1 / 3):
        below = float_below(number)
        assert below <= number < float(np.nextafter(np.float32(below), np.float32(2)))
