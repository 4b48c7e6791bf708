"""Figures of accuracy against answers worked out by hand, and against the official evaluator."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from controller.datasets import Dataset, Objects, Picture, Segmentation
from controller.evaluation import confusion, voc
from controller.evaluation.classes import Classes
from controller.evaluation.coco import compressed
from controller.evaluation.confusion_picture import MOST, draw
from controller.evaluation.figures import NAMES, PRIMARY, Figures, compute
from controller.evaluation.found import Found
from controller.evaluation.overlaps import overlaps
from targets.pictures.found import Mask

SIZE = 400
Box = tuple[float, float, float, float]
Truth = tuple[Box, int, bool]


def detection_set(
    pictures: Sequence[Sequence[Truth]], *, classes: int = 2, kind: Literal["coco", "voc"] = "coco", masks: bool = False
) -> Dataset:
    """Pictures of 400x400 pixels, each with (box, category, ignored)."""
    objects = []
    for truth in pictures:
        boxes = np.array([box for box, _, _ in truth], np.float64).reshape(-1, 4)
        outlines = tuple(Segmentation(polygons=((x0, y0, x1, y0, x1, y1, x0, y1),)) for x0, y0, x1, y1 in boxes)
        objects.append(
            Objects(
                boxes=boxes,
                labels=np.array([label for _, label, _ in truth], np.int64),
                ignored=np.array([ignored for _, _, ignored in truth], np.bool_),
                areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
                outlines=outlines if masks else (),
            )
        )
    return Dataset(
        kind=kind,
        path="set",
        categories=tuple(f"c{index}" for index in range(classes)),
        pictures=tuple(Picture(f"{i}", Path(f"{i}.png"), (SIZE, SIZE)) for i in range(len(pictures))),
        objects=tuple(objects),
    )


def answer(index: int, *found: tuple[Box, int, float], masks: Sequence[str] = ()) -> Found:
    boxes, labels, scores = [box for box, _, _ in found], [label for _, label, _ in found], [s for _, _, s in found]
    return Found(index, labels, scores, boxes, list(masks))


def same(count: int) -> Classes:
    return Classes(np.arange(count))


A: Box = (10, 10, 110, 110)
B: Box = (200, 200, 300, 300)
FAR: Box = (310, 310, 390, 390)


def moved(box: Box, dx: float) -> Box:
    return box[0] + dx, box[1], box[2] + dx, box[3]


def values(figures: Figures, *names: str) -> list[float | None]:
    return [figures.metrics[name] for name in names]


# --- COCO, by its evaluator ---------------------------------------------------------------------


def test_perfect_detections_are_one() -> None:
    data = detection_set([[(A, 0, False), (B, 1, False)], [(A, 1, False)]])
    figures = compute(data, [answer(0, (A, 0, 0.9), (B, 1, 0.8)), answer(1, (A, 1, 0.7))], same(2))
    assert values(figures, "mAP", "AP50", "AP75", "AR_100", "AP_large") == pytest.approx([1] * 5)
    # Nothing is small: there is nothing to measure it on.
    assert figures.metrics["AP_small"] is None
    assert [(one.name, one.truth, one.metrics["AP"]) for one in figures.classes] == [
        ("c0", 1, pytest.approx(1)),
        ("c1", 2, pytest.approx(1)),
    ]
    assert figures.confusion.tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 0]]
    assert set(figures.metrics) < set(NAMES["coco"]) and PRIMARY["coco"] in figures.metrics


@pytest.mark.parametrize(("overlap", "thresholds"), [(0.50, 1), (0.52, 1), (0.77, 6), (0.89, 8), (0.96, 10), (0.30, 0)])
def test_shifted_boxes_pass_so_many_of_the_ten_thresholds(overlap: float, thresholds: int) -> None:
    # Boxes of width 100 moved by d overlap by (100 - d) / (100 + d).
    shift = 100 * (1 - overlap) / (1 + overlap) - 1e-6
    data = detection_set([[(A, 0, False)]], classes=1)
    figures = compute(data, [answer(0, (moved(A, shift), 0, 0.9))], same(1))
    assert figures.metrics["mAP"] == pytest.approx(thresholds / 10)
    assert figures.metrics["AP50"] == pytest.approx(float(thresholds > 0))
    assert figures.metrics["AP75"] == pytest.approx(float(thresholds > 5))


def test_nothing_found_is_zero_and_no_object_is_nothing() -> None:
    data = detection_set([[(A, 0, False)]])
    figures = compute(data, [answer(0)], same(2))
    assert values(figures, "mAP", "AR_100") == [0, 0]
    assert [one.metrics["AP"] for one in figures.classes] == [0, None]
    assert compute(detection_set([[]]), [answer(0, (A, 0, 0.5))], same(2)).metrics["mAP"] is None


def test_a_false_alarm_before_the_hit_halves_precision() -> None:
    data = detection_set([[(A, 0, False)]], classes=1)
    first = compute(data, [answer(0, (FAR, 0, 0.9), (A, 0, 0.8))], same(1))
    after = compute(data, [answer(0, (A, 0, 0.9), (FAR, 0, 0.8))], same(1))
    assert values(first, "mAP") == pytest.approx([0.5]) and values(after, "mAP") == pytest.approx([1])


def test_a_crowd_is_neither_missed_nor_an_alarm() -> None:
    data = detection_set([[(A, 0, False), (B, 0, True)]], classes=1)
    figures = compute(data, [answer(0, (B, 0, 0.9), (A, 0, 0.8))], same(1))
    assert values(figures, "mAP") == pytest.approx([1])
    assert figures.classes[0].truth == 1 and figures.confusion.tolist() == [[1, 0], [0, 0]]


def rectangle(box: Box) -> str:
    pixels = np.zeros((SIZE, SIZE), np.bool_)
    x0, y0, x1, y1 = (int(edge) for edge in box)
    pixels[y0:y1, x0:x1] = True
    flat = np.concatenate([[False], pixels.T.ravel(), [False]])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges, [SIZE * SIZE]])).tolist()
    return compressed(Mask(size=(SIZE, SIZE), counts=counts))


def test_masks_are_measured_beside_boxes() -> None:
    data = detection_set([[(A, 0, False), (B, 1, False)]], masks=True)
    half: Box = (A[0], A[1], A[2], 60)
    found = [answer(0, (A, 0, 0.9), (B, 1, 0.8), masks=[rectangle(half), rectangle(B)])]
    figures = compute(data, found, same(2))
    assert figures.metrics["mAP"] == pytest.approx(1)
    # Half a mask passes the lowest threshold only: 0.1 for one class, 1 for the other.
    assert figures.metrics["segm_mAP"] == pytest.approx((0.1 + 1) / 2)
    assert [one.metrics["segm_AP"] for one in figures.classes] == pytest.approx([0.1, 1])
    without = compute(detection_set([[(A, 0, False), (B, 1, False)]]), found, same(2))
    assert "segm_mAP" not in without.metrics and "outline" in without.notes[0]


def test_pictures_that_could_not_be_read_are_left_out() -> None:
    data = detection_set([[(A, 0, False)], [(A, 0, False)]], classes=1)
    figures = compute(data, [answer(0, (A, 0, 0.9)), Found(1, bad="damaged")], same(1))
    assert figures.metrics["mAP"] == pytest.approx(1) and figures.classes[0].truth == 1


def test_classes_are_mapped_and_the_rest_is_left_out() -> None:
    data = detection_set([[(A, 0, False), (B, 1, False)]])
    found = [answer(0, (A, 2, 0.9), (B, 0, 0.8))]
    figures = compute(data, found, Classes(np.array([-1, -1, 0]), left_out=(1,)))
    assert figures.metrics["mAP"] == pytest.approx(1)
    assert [one.name for one in figures.classes] == ["c0"] and "c1" in figures.notes[0]


def test_figures_are_computed_in_many_threads_and_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    data = detection_set([[(A, 0, False)]], classes=1)
    found: list[float | None] = []
    work = [
        threading.Thread(target=lambda: found.append(compute(data, [answer(0, (A, 0, 0.9))], same(1)).metrics["mAP"]))
        for _ in range(4)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    print("still here")
    assert found == pytest.approx([1] * 4) and capsys.readouterr().out == "still here\n"


# --- VOC ----------------------------------------------------------------------------------------


def test_voc_by_hand() -> None:
    # Hit, miss, hit of three objects: recall 1/3, 1/3, 2/3; precision 1, 1/2, 2/3.
    data = detection_set([[(A, 0, False), (B, 0, False)], [(A, 0, False)]], classes=1, kind="voc")
    found = [answer(0, (A, 0, 0.9), (FAR, 0, 0.8)), answer(1, (A, 0, 0.7))]
    figures = compute(data, found, same(1))
    assert figures.metrics["mAP50"] == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    # Marks 0 to 0.3 see 1, 0.4 to 0.6 see 2/3, the rest 0.
    assert figures.metrics["mAP50_11"] == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)
    assert tuple(figures.metrics) == NAMES["voc"]


def test_voc_counts_a_second_box_on_an_object_as_an_alarm() -> None:
    data = detection_set([[(A, 0, False), (B, 0, False)]], classes=1, kind="voc")
    found = [answer(0, (A, 0, 0.9), (moved(A, 5), 0, 0.8), (B, 0, 0.7))]
    assert compute(data, found, same(1)).metrics["mAP50"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_voc_difficult_objects_do_not_count() -> None:
    data = detection_set([[(A, 0, False), (B, 0, True)]], classes=1, kind="voc")
    both = compute(data, [answer(0, (B, 0, 0.95), (moved(B, 1), 0, 0.94), (A, 0, 0.9))], same(1))
    none = compute(data, [answer(0, (A, 0, 0.9))], same(1))
    assert values(both, "mAP50", "mAP50_11") == pytest.approx([1, 1])
    assert values(none, "mAP50", "mAP50_11") == pytest.approx([1, 1]) and none.classes[0].truth == 1
    only = detection_set([[(A, 0, True)]], classes=1, kind="voc")
    assert compute(only, [answer(0, (A, 0, 0.9))], same(1)).metrics["mAP50"] is None


def test_voc_takes_an_overlap_of_just_one_half() -> None:
    # 100 x 100 within 200 x 100.
    data = detection_set([[((0, 0, 200, 100), 0, False)]], classes=1, kind="voc")
    assert compute(data, [answer(0, ((0, 0, 100, 100), 0, 0.9))], same(1)).metrics["mAP50"] == pytest.approx(1)
    assert compute(data, [answer(0, ((0, 0, 99, 100), 0, 0.9))], same(1)).metrics["mAP50"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_voc_judges_as_pycocotools_does_where_they_agree(seed: int) -> None:
    """Objects far apart: both match alike. The 101 recalls of COCO's curve are read off the curve computed here."""
    random = np.random.default_rng(seed)
    pictures, found = [], []
    for index in range(12):
        truth: list[Truth] = []
        boxes: list[tuple[Box, int, float]] = []
        for cell in range(9):
            x, y = 10 + 130 * (cell % 3), 10 + 130 * (cell // 3)
            box: Box = (x, y, x + 80, y + 80)
            label = int(random.integers(2))
            if random.random() < 0.8:
                truth.append((box, label, False))
            if random.random() < 0.8:
                said = label if random.random() < 0.8 else 1 - label
                boxes.append((moved(box, float(random.uniform(0, 40))), said, float(random.random())))
        pictures.append(truth)
        found.append(answer(index, *boxes))
    data = detection_set(pictures, kind="voc")
    official = compute(detection_set(pictures), found, same(2))
    ours = compute(data, found, same(2))
    for label in range(2):
        right, count = voc._judged(data, found, [same(2).of(one.labels) for one in found], label)
        recall, precision = voc.curve(right, count)
        marks = [np.max(precision[recall >= mark - 1e-12], initial=0) for mark in np.linspace(0, 1, 101)]
        assert official.classes[label].metrics["AP50"] == pytest.approx(np.mean(marks), abs=1e-9)
        assert official.classes[label].truth == ours.classes[label].truth == count
        # One object more or less is the most by which sampled recalls differ from the area.
        assert ours.classes[label].metrics["AP50"] == pytest.approx(official.classes[label].metrics["AP50"], abs=0.02)


# --- Labels -------------------------------------------------------------------------------------


def test_top_1_and_top_5_by_hand() -> None:
    names = tuple("abcdefg")
    truth = (0, 1, 2, 2)
    data = Dataset("folders", "set", names, tuple(Picture(f"{i}", Path(f"{i}")) for i in range(4)), labels=truth)
    said = [[0, 1, 2, 3, 4], [0, 6, 5, 4, 1], [3, 4, 5, 6, 0], [2, 0, 1, 3, 4]]
    found = [Found(index, labels, [0.5, 0.2, 0.1, 0.1, 0.1]) for index, labels in enumerate(said)]
    figures = compute(data, found, same(7))
    assert figures.metrics == {"top1": 0.5, "top5": 0.75}
    assert [(one.truth, one.metrics["top1"], one.metrics["top5"]) for one in figures.classes[:4]] == [
        (1, 1, 1),
        (1, 0, 1),
        (2, 0.5, 0.5),
        (0, None, None),
    ]
    assert figures.confusion.shape == (7, 8)
    assert figures.confusion[2].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    # A class that the data set does not have is a wrong answer.
    mapped = compute(data, found, Classes(np.array([-1, 1, 2, 3, 4, 5, 6]), left_out=(0,)))
    assert mapped.metrics == {"top1": pytest.approx(1 / 3), "top5": pytest.approx(2 / 3)}
    assert mapped.confusion[1, 7] == 1


# --- What is taken for what ---------------------------------------------------------------------


def test_confusion_by_hand() -> None:
    data = detection_set([[(A, 0, False), (B, 1, False), (FAR, 0, False)]])
    found = [
        answer(
            0,
            (A, 1, 0.9),  # another class on A
            (moved(A, 2), 0, 0.8),  # A is taken
            (B, 1, 0.7),
            ((0, 300, 50, 350), 0, 0.6),  # nothing is there
            (FAR, 0, 0.2),  # not sure enough
        )
    ]
    assert confusion.of_boxes(data, found, same(2)).tolist() == [[0, 1, 1], [0, 1, 0], [2, 0, 0]]


@pytest.mark.parametrize(("count", "extra"), [(2, 1), (30, 0), (300, 1)])
def test_the_picture_shows_the_diagonal_and_mistakes(count: int, extra: int) -> None:
    matrix = np.zeros((count + extra, count + 1), np.int64)
    matrix[np.arange(count), np.arange(count)] = 9
    matrix[0, 1] = 9
    names = [f"name {index} \x1b[31m" + "long " * (index % 9) for index in range(count)]
    picture = draw(matrix, names, "title")
    assert picture.mode == "RGB" and max(picture.size) < 2500
    pixels = np.asarray(picture).reshape(-1, 3)
    full = int((pixels == (8, 69, 148)).all(axis=1).sum())
    shown = min(count, MOST)
    cell = max(12, min(48, 1200 // (shown + 1)))
    # Every row but the first is all right; counts are written over cells that have room for them.
    assert full > (shown - 1) * cell * cell * 0.5


def test_overlaps() -> None:
    one = np.array([[0, 0, 10, 10], [5, 5, 5, 5]], np.float64)
    other = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], np.float64)
    assert overlaps(one, other).tolist() == [[1, pytest.approx(1 / 3), 0], [0, 0, 0]]
    assert overlaps(one[:0], other).shape == (0, 3)
