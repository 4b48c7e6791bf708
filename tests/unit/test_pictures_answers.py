"""Reading outputs: labels, single-shot detectors, detections; against torchvision, and what no device may send."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.transform import resize_boxes

from targets.base import FleetError, Postprocess, Preprocess, TensorSpec
from targets.pictures import answers
from targets.pictures.found import Box, TopLabel
from targets.pictures.masks import decode
from targets.pictures.place import Place, place


def _interpret(
    outputs: Sequence[npt.NDArray[Any]],
    postprocess: Postprocess,
    labels: Sequence[str],
    size: tuple[int, int],
    top: int | None = None,
    threshold: float | None = None,
) -> list[TopLabel] | list[Box]:
    """Of a network that takes its pictures stretched to 300 pixels."""
    where = place(size, Preprocess(size=(300, 300)))
    return answers.interpret(outputs, (), postprocess, labels, where, top=top, threshold=threshold)


def test_top_labels_are_probabilities_best_first() -> None:
    logits = np.array([[0.0, 2.0, 1.0, 2.0]], np.float32)
    found = _interpret([logits], Postprocess(kind="classify"), ("a", "b", "c", "d"), (1, 1), top=3)
    assert all(isinstance(one, TopLabel) for one in found)
    assert [one.label for one in found] == ["b", "d", "c"]
    wanted = np.exp(logits[0]) / np.exp(logits[0]).sum()
    np.testing.assert_allclose([one.score for one in found], wanted[[1, 3, 2]], rtol=1e-6)
    asis = _interpret([logits], Postprocess(kind="classify", softmaxed=True), (), (1, 1), top=9)
    assert asis[0] == TopLabel(label="1", index=1, score=2.0)
    assert len(asis) == 4


@pytest.mark.parametrize(
    ("outputs", "kind"),
    [
        ([np.array([[np.nan, 1.0]])], "classify"),
        ([np.zeros((2, 3))], "classify"),
        ([], "classify"),
        ([np.zeros((1, 2, 4))], "ssd"),
        ([np.zeros((1, 3, 4)), np.zeros((1, 3, 2))], "ssd"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(outputs: list[np.ndarray], kind: str) -> None:
    post = Postprocess(kind=kind, anchors=((0.5, 0.5, 1, 1), (0.5, 0.5, 0.5, 0.5)))  # type: ignore[arg-type]
    with pytest.raises(FleetError) as caught:
        _interpret(outputs, post, ("a",), (10, 10))
    assert caught.value.code == "bad-output"


def test_boxes_are_decoded_into_the_pictures_pixels() -> None:
    post = Postprocess(kind="ssd", anchors=((0.5, 0.5, 0.2, 0.4), (0.1, 0.1, 0.1, 0.1)))
    # The first is moved right by a tenth of its width and made twice as high; the second is background.
    locations = np.array([[[1.0, 0.0, 0.0, np.log(2) / 0.2], [0, 0, 0, 0]]])
    logits = np.array([[[0.0, 0.0, 9.0], [9.0, 0.0, 0.0]]])
    (box,) = _interpret([locations, logits], post, ("a", "b"), (200, 100))
    assert isinstance(box, Box) and box.label == "b" and box.score > 0.99
    np.testing.assert_allclose(box.xyxy, (0.42 * 200, 0.1 * 100, 0.62 * 200, 0.9 * 100), rtol=1e-6)


def test_absurd_offsets_stay_in_the_picture() -> None:
    post = Postprocess(kind="ssd", anchors=((0.5, 0.5, 0.2, 0.4),))
    (box,) = _interpret([np.full((1, 1, 4), 1e30), np.array([[[0.0, 9.0]]])], post, ("a",), (50, 50))
    assert isinstance(box, Box) and np.isfinite(box.xyxy).all() and max(box.xyxy) <= 50


def test_a_threshold_given_outranks_the_models() -> None:
    post = Postprocess(kind="ssd", anchors=((0.5, 0.5, 0.2, 0.2), (0.2, 0.2, 0.1, 0.1)), score_threshold=0.9)
    outputs = [np.zeros((1, 2, 4)), np.array([[[0.0, 4.0], [0.0, 1.0]]])]
    assert len(_interpret(outputs, post, ("a",), (9, 9))) == 1
    assert len(_interpret(outputs, post, ("a",), (9, 9), threshold=0.5)) == 2
    assert _interpret(outputs, post, ("a",), (9, 9), threshold=1.0) == []


def test_the_best_boxes_are_told_first_and_no_more_than_asked_for() -> None:
    anchors = tuple((0.05 + 0.1 * n, 0.5, 0.05, 0.05) for n in range(10))
    post = Postprocess(kind="ssd", anchors=anchors, softmaxed=True)
    scores = np.stack([1 - np.arange(1, 11) / 20, np.arange(1, 11) / 20], 1)[None]
    outputs = [np.zeros((1, 10, 4)), scores]
    found = _interpret(outputs, post, ("a",), (100, 100), top=3)
    np.testing.assert_allclose([one.score for one in found], [0.5, 0.45, 0.4], rtol=1e-6)
    assert len(_interpret(outputs, post, ("a",), (100, 100))) == 9, (
        "none is hidden that scores more than the model says"
    )
    assert len(_interpret(outputs, post, ("a",), (100, 100), threshold=0.05)) == 10, "the threshold itself counts"
    # The same with boxes last.
    last = msgspec.structs.replace(post, boxes_last=True)
    assert _interpret([array.transpose(0, 2, 1) for array in outputs], last, ("a",), (100, 100), top=3) == found


# --- Detections ---------------------------------------------------------------------------------

MOST, CLASSES = 6, 4
POST = Postprocess("detections", coordinates="pixels")
#: A picture of 640x480 in an input of 320x320, and one that fills nothing.
WIDE = place((640, 480), Preprocess(size=(300, 300), resize="fit", canvas=(320, 320)))


def _specs(masks: tuple[int, int] | None = None, dtype: str = "float32") -> list[TensorSpec]:
    more = [TensorSpec("masks", (1, MOST, *masks), dtype)] if masks else []
    return [
        TensorSpec("boxes", (1, MOST, 4), "float32"),
        TensorSpec("scores", (1, MOST), "float32"),
        TensorSpec("labels", (1, MOST), "int64"),
        TensorSpec("count", (1,), "int32"),
        *more,
    ]


def _outputs(count: int, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    noise = np.random.default_rng(seed)
    corner = noise.uniform(0, 150, (count, 2))
    found = {
        "boxes": np.zeros((1, MOST, 4), np.float32),
        "scores": np.zeros((1, MOST), np.float32),
        "labels": np.zeros((1, MOST), np.int64),
        "count": np.array([count], np.int32),
    }
    found["boxes"][0, :count] = np.concatenate([corner, corner + noise.uniform(5, 75, (count, 2))], 1)
    found["scores"][0, :count] = np.sort(noise.uniform(0.1, 1, count))[::-1]
    found["labels"][0, :count] = noise.integers(0, CLASSES, count)
    return found


def _detect(outputs: dict[str, npt.NDArray[Any]], where: Place = WIDE, **changed: Any) -> answers.Detections:
    specs = [TensorSpec(name, array.shape, array.dtype.name) for name, array in outputs.items()]
    return answers.detect(list(outputs.values()), specs, POST, where, classes=CLASSES, **changed)


@pytest.mark.parametrize("size", [(640, 480), (333, 517), (300, 300), (1999, 7)])
def test_boxes_in_pixels_go_back_as_torchvisions(size: tuple[int, int]) -> None:
    where = place(size, Preprocess(size=(300, 300), resize="fit", canvas=(320, 320)))
    outputs = _outputs(MOST)
    limits = np.array(where.kept * 2, np.float32)
    outputs["boxes"] = np.minimum(outputs["boxes"], limits)
    found = _detect(outputs, where)
    theirs = resize_boxes(torch.from_numpy(outputs["boxes"][0]), list(where.kept[::-1]), list(size[::-1])).numpy()
    np.testing.assert_array_equal(found.boxes, np.minimum(theirs, np.array(size * 2)))
    assert found.scores.tolist() == outputs["scores"][0].tolist()
    assert found.labels.tolist() == outputs["labels"][0].tolist()


def test_relative_boxes_are_of_the_picture_and_not_of_what_fills_up() -> None:
    outputs = _outputs(1)
    outputs["boxes"][0, 0] = 0.25, 0.5, 0.75, 1.0
    post = msgspec.structs.replace(POST, coordinates="relative")
    specs = _specs()
    (box,) = answers.detect(list(outputs.values()), specs, post, WIDE).boxes
    np.testing.assert_allclose(box, (160, 240, 480, 480))
    # Of a cropped picture the rest is around: 400x400 in the middle of 800x400.
    middle = place((800, 400), Preprocess(size=(200, 200), resize="crop", crop_ratio=1.0))
    (box,) = answers.detect(list(outputs.values()), specs, post, middle).boxes
    np.testing.assert_allclose(box, (300, 200, 500, 400))
    outputs["boxes"][0, 0] = 50, 100, 150, 200
    (box,) = answers.detect(list(outputs.values()), specs, POST, middle).boxes
    np.testing.assert_allclose(box, (300, 200, 500, 400))


def test_only_rows_up_to_the_count_are_told_and_only_those_that_score_enough() -> None:
    for count in (0, 1, MOST):
        assert len(_detect(_outputs(count))) == count
    outputs = _outputs(MOST)
    scores = outputs["scores"][0]
    assert len(_detect(outputs, threshold=float(scores[2]))) == 3
    # What came in another order is sorted.
    outputs["scores"] = scores[None, ::-1].copy()
    found = _detect(outputs)
    assert found.scores.tolist() == scores.tolist()
    assert found.labels.tolist() == outputs["labels"][0, ::-1].tolist()


def test_masks_come_with_their_boxes() -> None:
    outputs = _outputs(MOST)
    outputs["masks"] = np.zeros((1, MOST, 28, 28), np.float32)
    outputs["masks"][0, 1, :, :14] = 1.0
    boxes = answers.interpret(list(outputs.values()), _specs((28, 28)), POST, ("a", "b", "c", "d"), WIDE, top=2)
    empty, half = (box.mask for box in boxes if isinstance(box, Box))
    assert empty is not None and half is not None
    assert empty.size == (480, 640) and empty.counts == [480 * 640]
    (x0, y0, x1, y1), on = boxes[1].xyxy, decode(half)  # type: ignore[union-attr]
    assert on.sum() == pytest.approx((x1 - x0) / 2 * (y1 - y0), rel=0.2)
    document = msgspec.to_builtins(boxes[0])
    assert set(document) == {"label", "score", "xyxy", "mask"} and set(document["mask"]) == {"size", "counts"}
    without = answers.interpret(list(outputs.values())[:4], _specs(), POST, (), WIDE)
    assert set(msgspec.to_builtins(without[0])) == {"label", "score", "xyxy"}


_HOSTILE: list[tuple[str, Any, str]] = [
    ("count", np.array([MOST + 1], np.int32), "7 boxes were found"),
    ("count", np.array([-1], np.int32), "-1 boxes were found"),
    ("count", np.array([2**31 - 1], np.int32), "boxes were found"),
    ("count", np.array([1.0], np.float32), "not integers"),
    ("count", np.array([[1]], np.int32), "'count' has the shape"),
    ("labels", np.full((1, MOST), CLASSES), "class number 4"),
    ("labels", np.full((1, MOST), -1), "class number -1"),
    ("labels", np.zeros((1, MOST), np.float32), "not integers"),
    ("labels", np.zeros((1, MOST + 1), np.int64), "'labels' has the shape"),
    ("boxes", np.full((1, MOST, 4), np.nan, np.float32), "no finite numbers"),
    ("boxes", np.full((1, MOST, 4), np.inf, np.float32), "no finite numbers"),
    ("boxes", np.zeros((1, MOST, 5), np.float32), "'boxes' has the shape"),
    ("boxes", np.zeros((), np.float32), "'boxes' has the shape"),
    ("scores", np.full((1, MOST), np.nan, np.float32), "no finite numbers"),
    ("scores", np.full((1, MOST), 7.0, np.float32), "scores go from 7 to 7"),
    ("scores", np.full((1, MOST), -0.5, np.float32), "scores go from -0.5"),
    ("scores", np.full((1, MOST), 1j, np.complex64), "no numbers"),
    ("scores", np.zeros((), np.float32), "has the shape"),
    ("masks", np.zeros((1, MOST, 28, 27), np.float32), "'masks' is float32"),
    ("masks", np.zeros((1, MOST, 0, 0), np.float32), "'masks' is float32"),
    ("masks", np.full((1, MOST, 28, 28), np.nan, np.float32), "no finite numbers"),
    ("masks", np.zeros((1, MOST, 28, 28), np.uint8), "'masks' is uint8"),
    ("masks", np.zeros((1, MOST, 28, 28), np.int32), "'masks' is int32"),
]


@pytest.mark.parametrize(("name", "value", "words"), _HOSTILE)
def test_detections_that_cannot_be_are_refused(name: str, value: npt.NDArray[Any], words: str) -> None:
    outputs = {**_outputs(MOST), name: value}
    with pytest.raises(FleetError, match=words) as caught:
        _detect(outputs)
    assert caught.value.code == "bad-output"


def test_a_missing_output_is_named() -> None:
    for name in ("boxes", "scores", "labels", "count"):
        outputs = _outputs(2)
        del outputs[name]
        with pytest.raises(FleetError, match=f"no output '{name}'"):
            _detect(outputs)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.data())
def test_numbers_of_any_size_stay_in_the_picture_or_are_refused(seed: int, data: st.DataObject) -> None:
    outputs = _outputs(MOST, seed)
    floats = st.floats(width=32)
    outputs["boxes"][0, 0] = data.draw(st.tuples(floats, floats, floats, floats))
    outputs["scores"][0, 0] = data.draw(floats)
    outputs["masks"] = np.ones((1, MOST, 7, 7), np.float32)
    try:
        found = _detect(outputs)
    except FleetError as error:
        assert error.code == "bad-output"
        return
    assert (found.boxes >= 0).all() and (found.boxes <= np.array([640, 480] * 2)).all()
    for row in range(len(found)):
        patch = found.patch(row)
        height, width = patch.on.shape
        assert 0 <= patch.left <= patch.left + width <= 640 and 0 <= patch.top <= patch.top + height <= 480
        assert math.prod(patch.on.shape) <= 640 * 480


def test_a_picture_of_a_batch_is_taken_out() -> None:
    outputs = [np.arange(6).reshape(3, 2), np.arange(3)]
    one = answers.of_picture(outputs, 2)
    assert [array.tolist() for array in one] == [[[4, 5]], [2]]
    for wrong, row in (([*outputs, np.zeros(())], 0), (outputs, 3)):
        with pytest.raises(FleetError) as caught:
            answers.of_picture(wrong, row)
        assert caught.value.code == "bad-output"
