"""Detections are matched one to one: what rounding explains is the same, and everything else is named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from agent import golden
from targets.base import Postprocess, TensorSpec
from targets.detection.compare import Comparison, Cuts, compare
from targets.detection.select import class_nms

RTOL, ATOL = 1e-4, 1e-4


@dataclass(frozen=True)
class Found:
    boxes: npt.NDArray[Any]
    scores: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    masks: npt.NDArray[Any] | None = None

    def rows(self, which: Any) -> Found:
        return Found(
            self.boxes[which], self.scores[which], self.labels[which], None if self.masks is None else self.masks[which]
        )


def _random(seed: int, count: int, classes: int = 3) -> Found:
    """Boxes of a picture of 300 pixels, best first, with scores of 0.1 to 1."""
    noise = np.random.default_rng(seed)
    corner = noise.uniform(0, 200, (count, 2))
    boxes = np.concatenate([corner, corner + noise.uniform(5, 100, (count, 2))], 1).astype(np.float32)
    scores = np.sort(noise.uniform(0.1, 1, count))[::-1].astype(np.float32)
    return Found(boxes, scores, noise.integers(0, classes, count))


def _same(a: Found, b: Found, cuts: Cuts | None = None) -> Comparison:
    return compare(a, b, RTOL, ATOL, cuts)


@given(st.integers(0, 2**32 - 1), st.integers(0, 30))
def test_what_rounding_does_is_the_same(seed: int, count: int) -> None:
    noise = np.random.default_rng([seed, 1])
    b = _random(seed, count)
    assert _same(b, b) == Comparison((), 0.0, count, 0)
    moved = Found(
        b.boxes + noise.uniform(-0.9, 0.9, b.boxes.shape) * ATOL,
        b.scores + noise.uniform(-0.45, 0.45, count) * ATOL,
        b.labels,
    )
    order = np.argsort(-moved.scores, kind="stable")
    compared = _same(moved.rows(order), b)
    assert compared.same and compared.matched == count, str(compared)
    # Two that score alike may have changed places.
    if count > 1:
        tied = replace(b, scores=np.full(count, 0.5, np.float32))
        assert _same(tied.rows(noise.permutation(count)), tied).matched == count


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.data())
def test_what_rounding_does_not_do_is_named(seed: int, count: int, data: st.DataObject) -> None:
    b = _random(seed, count)
    row = data.draw(st.integers(0, count - 1))
    assume(b.scores[row] > 0.11 and not (np.diff(b.scores) > -3e-3).any())
    cuts = Cuts(score=0.1)

    def changed(field: str, value: Any) -> Comparison:
        array = getattr(b, field).copy()
        array[row] = array[row] + value
        return _same(replace(b, **{field: array}), b, cuts)

    without = _same(b.rows(np.arange(count) != row), b, cuts)
    assert "only in the reference" in str(without) and f"{b.scores[row]:.6g}" in str(without)
    assert len(without.differences) == 1 and (without.matched, without.excused) == (count - 1, 0)
    more = _same(b, b.rows(np.arange(count) != row), cuts)
    assert "is not in the reference" in str(more) and len(more.differences) == 1
    moved = changed("boxes", np.array([0, 0.1, 0, 0], np.float32))
    assert "the nearest differs by 0.1" in str(moved) and len(moved.differences) == 2
    assert not changed("scores", np.float32(1e-3)).same
    assert not changed("labels", 3).same
    assert not changed("boxes", np.float32(np.nan)).same
    assert not changed("scores", np.float32(np.nan)).same


def test_order_matters_where_scores_differ() -> None:
    b = _random(3, 10)
    swapped = _same(b.rows([1, 0, *range(2, 10)]), b)
    assert swapped.matched == 10 and "not best first" in str(swapped)


def test_the_score_threshold_and_the_number_of_rows_excuse_what_is_near_them() -> None:
    b = _random(4, 10)
    last = float(b.scores[-1])
    fewer = b.rows(slice(9))
    assert _same(fewer, b, Cuts(score=last - 5e-5)) == Comparison((), 0.0, 9, 1)
    assert _same(b, fewer, Cuts(score=last - 5e-5)).same
    assert not _same(fewer, b, Cuts(score=last - 5e-3)).same
    # Of two that score alike for the last place, either may have it.
    other = Found(
        np.concatenate([b.boxes[:9], b.boxes[9:] + 20]),
        np.append(b.scores[:9], b.scores[9] + np.float32(5e-5)),
        b.labels,
    )
    assert _same(other, b, Cuts(most=10)) == Comparison((), 0.0, 9, 2)
    assert not _same(other, b, Cuts(most=11)).same
    better = replace(other, scores=np.append(b.scores[:9], b.scores[9] + np.float32(5e-3)))
    assert len(_same(better, b, Cuts(most=10)).differences) == 1, "it has the last place, the other lost it"


def test_an_overlap_at_the_threshold_excuses_a_box_and_what_it_displaces() -> None:
    # Each overlaps the next by a third, as 10 of 30 pixels.
    boxes = np.array([[0, 0, 20, 10], [10, 0, 30, 10], [20, 0, 40, 10]], np.float32)
    scores, labels = np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int64)
    every = Found(boxes, scores, labels)
    third = 1 / 3
    # The second goes when its overlap is above the threshold; then nothing takes the third away.
    first, other = every.rows([0, 1]), every.rows([0, 2])
    assert _same(first, other, Cuts(overlap=third)) == Comparison((), 0.0, 1, 2)
    assert _same(other, first, Cuts(overlap=third)).same
    # At another threshold one of the two is wrong.
    for overlap in (0.25, 0.45):
        assert not _same(first, other, Cuts(overlap=overlap)).same
    # A box of another class displaces none.
    assert not _same(replace(first, labels=np.array([0, 1])), replace(other, labels=np.array([0, 1]))).same


@given(st.integers(0, 2**32 - 1))
def test_suppression_in_other_arithmetic_is_the_same(seed: int) -> None:
    """Boxes on a grid meet thresholds exactly; nudged by less than the tolerance, they fall to either side."""
    noise = np.random.default_rng(seed)
    corner = noise.integers(0, 8, (40, 2))
    boxes = np.concatenate([corner, corner + noise.integers(1, 5, (40, 2))], 1).astype(np.float32) * 10
    scores = (noise.permutation(40)[None] / 50 + 0.1).astype(np.float32)
    found = []
    for nudge in (0.0, 2e-5):
        moved = boxes + noise.uniform(-nudge, nudge, boxes.shape).astype(np.float32)
        kept = class_nms(
            moved[None, None], scores[None], score_threshold=0.3, iou_threshold=0.5, most=12, per_class=0, total=0
        )
        count = int(kept.counts[0])
        found.append(Found(kept.boxes[0, :count], kept.scores[0, :count], kept.labels[0, :count]))
    compared = _same(found[1], found[0], Cuts(score=0.3, overlap=0.5, most=12))
    assert compared.same, str(compared)


def test_pairs_are_as_many_as_there_can_be() -> None:
    """The nearest partner of one may be the only one of another."""
    box = np.array([[0, 0, 10, 10]], np.float64)
    scores = np.full(3, 0.5)
    a = Found(np.concatenate([box, box + 1e-4, box + 2e-4]), scores, np.zeros(3, np.int64))
    b = Found(np.concatenate([box + 1e-4, box + 2e-4, box + 3e-4]), scores, np.zeros(3, np.int64))
    compared = compare(a, b, 0.0, 1.01e-4)
    assert compared.same and compared.matched == 3
    noise = np.random.default_rng(0)
    for _ in range(50):
        at = np.sort(noise.uniform(0, 1, 12))
        line = Found(np.repeat(at[:, None], 4, 1), np.full(12, 0.5), np.zeros(12, np.int64))
        other = replace(line, boxes=line.boxes + noise.uniform(-0.2, 0.2, (12, 1)))
        near = np.abs(line.boxes[:, :1] - other.boxes[:, 0]) <= 0.1
        most = int((maximum_bipartite_matching(csr_array(near)) >= 0).sum())
        assert compare(line, other, 0.0, 0.1).matched == most


def test_masks_are_compared_between_pairs() -> None:
    noise = np.random.default_rng(1)
    b = replace(_random(5, 3), masks=noise.random((3, 28, 28)).astype(np.float32))
    assert b.masks is not None
    assert _same(replace(b, masks=b.masks + np.float32(5e-5)), b).same
    wrong = b.masks.copy()
    wrong[1, 3, 4] += 0.1
    compared = _same(replace(b, masks=wrong), b)
    assert "the mask of class" in str(compared) and compared.worst == pytest.approx(0.1, rel=1e-5)
    assert "have no masks" in str(_same(replace(b, masks=None), b))
    assert not _same(replace(b, masks=b.masks[:, :14]), b).same
    assert not _same(replace(b, masks=np.where(wrong == wrong[1, 3, 4], np.nan, b.masks)), b).same
    # Masks of the whole picture may lie a pixel apart, but no more.
    whole = np.zeros((3, 60, 80), np.uint8)
    whole[:, 10:40, 20:50] = 200
    for shift, same in ((1, True), (2, False)):
        assert _same(replace(b, masks=np.roll(whole, shift, 2)), replace(b, masks=whole)).same is same


SPECS = (
    TensorSpec("boxes", (2, 5, 4), "float32"),
    TensorSpec("scores", (2, 5), "float32"),
    TensorSpec("labels", (2, 5), "int64"),
    TensorSpec("count", (2,), "int32"),
)


def _outputs() -> list[npt.NDArray[Any]]:
    arrays = [np.zeros(spec.shape, spec.dtype) for spec in SPECS]
    for picture, count in enumerate((5, 3)):
        found = _random(picture, count)
        for array, rows in zip(arrays, (found.boxes, found.scores, found.labels), strict=False):
            array[picture, :count] = rows
        arrays[3][picture] = count
    return arrays


def _check(outputs: list[npt.NDArray[Any]], references: list[npt.NDArray[Any]]) -> tuple[float, str]:
    post = Postprocess("detections", score_threshold=0.05)
    return golden.compare(outputs, references, SPECS, rtol=RTOL, atol=ATOL, postprocess=post)


def test_the_golden_check_matches_detections_of_each_picture() -> None:
    wanted, got = _outputs(), _outputs()
    assert _check(got, wanted) == (0.0, "")
    for array in got[:3]:
        array[0, :2] = array[0, [1, 0]]
    got[1][0, :2] = wanted[1][0, :2] = 0.9
    assert _check(got, wanted) == (0.0, ""), "equal scores may change places"
    got[0][1, 1] += 1
    assert _check(got, wanted)[1].startswith("picture 1: class ")


@pytest.mark.parametrize(
    ("output", "at", "value", "words"),
    [
        (3, 0, 6, "'count'[0] is 6"),
        (3, 1, -1, "'count'[1] is -1"),
        (3, 1, 2, "not zero behind"),
        (0, (1, 3, 0), np.nan, "not zero behind"),
        (0, (1, 0, 0), np.nan, "picture 1: their boxes"),
        (1, (0, 0), np.inf, "no finite numbers"),
    ],
)
def test_the_golden_check_refuses_what_is_no_detection(output: int, at: Any, value: float, words: str) -> None:
    got = _outputs()
    got[output][at] = value
    assert words in _check(got, _outputs())[1]
    assert _check(_outputs(), got)[1], "nor may the reference"


def test_the_golden_check_needs_the_outputs_of_detections() -> None:
    post = Postprocess("detections")
    arrays = [np.zeros((1, 3), np.float32)] * 4
    for specs, words in (
        ([TensorSpec(str(n), (1, 3), "float32") for n in range(4)], "no output 'boxes'"),
        ([TensorSpec(spec.name, (1, 3), "float32") for spec in SPECS], "wanted the shape (1, 3, 4)"),
    ):
        assert words in golden.compare(arrays, arrays, specs, rtol=0, atol=0, postprocess=post)[1]
