"""Average precision as the PASCAL VOC development kits compute it: in 2007 at 11 recalls, since 2010 the area."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from controller.evaluation.overlaps import overlaps
from controller.reports import ClassReport

if TYPE_CHECKING:
    from controller.datasets import Dataset
    from controller.evaluation.classes import Classes
    from controller.evaluation.found import Found

Floats = npt.NDArray[np.float64]

#: An object is found by a box that overlaps it at least so much (VOCopts.minoverlap).
MIN_OVERLAP = 0.5


def figures(
    dataset: Dataset, found: Sequence[Found], classes: Classes
) -> tuple[dict[str, float | None], list[ClassReport], list[str]]:
    """``mAP50`` (the area) and ``mAP50_11`` (the mean at 11 recalls), means of the classes that have objects."""
    categories = [classes.of(one.labels) for one in found]
    per_class: list[ClassReport] = []
    for label, name in enumerate(dataset.categories):
        if label in classes.left_out:
            continue
        right, count = _judged(dataset, found, categories, label)
        recall, precision = curve(right, count)
        figures = {"AP50": area(recall, precision), "AP50_11": eleven_points(recall, precision)}
        values: dict[str, float | None] = {key: value if count else None for key, value in figures.items()}
        per_class.append(ClassReport(name=name, truth=count, metrics=values))
    metrics: dict[str, float | None] = {}
    for key in ("AP50", "AP50_11"):
        given = [value for one in per_class if (value := one.metrics[key]) is not None]
        metrics[f"m{key}"] = float(np.mean(given)) if given else None
    return metrics, per_class, []


def _judged(
    dataset: Dataset, found: Sequence[Found], categories: Sequence[npt.NDArray[np.int64]], label: int
) -> tuple[npt.NDArray[np.bool_], int]:
    """For each detection of a class, best first, whether it is right; those of difficult objects are not among them.

    Also the number of objects that are not difficult.
    """
    scores: list[float] = []
    verdicts: list[bool] = []
    count = 0
    for one, category in zip(found, categories, strict=True):
        truth = dataset.objects[one.index]
        here = truth.labels == label
        difficult = truth.ignored[here]
        count += int((~difficult).sum())
        mine = np.flatnonzero(category == label)
        # An object is given to the best box that finds it; the order among pictures does not matter for that.
        mine = mine[np.argsort(-np.array(one.scores)[mine], kind="stable")] if mine.size else mine
        boxes = np.array(one.boxes, np.float64).reshape(-1, 4)[mine]
        iou = overlaps(boxes, truth.boxes[here])
        taken = np.zeros(len(difficult), np.bool_)
        for row, detection in enumerate(mine):
            best = int(iou[row].argmax()) if len(difficult) else -1
            hit = best >= 0 and iou[row, best] >= MIN_OVERLAP
            if hit and difficult[best]:
                continue
            scores.append(one.scores[detection])
            verdicts.append(bool(hit and not taken[best]))
            if hit:
                taken[best] = True
    order = np.argsort(-np.array(scores, np.float64), kind="stable")
    return np.array(verdicts, np.bool_)[order], count


def curve(right: npt.NDArray[np.bool_], count: int) -> tuple[Floats, Floats]:
    """Recall and precision after each detection, best first, of ``count`` objects."""
    hits = np.cumsum(right)
    return hits / max(count, 1), hits / np.arange(1, len(right) + 1)


def area(recall: Floats, precision: Floats) -> float:
    """The area below the curve once precision never rises with recall (VOC 2010 and later)."""
    recall = np.concatenate([[0.0], recall, [1.0]])
    envelope = np.maximum.accumulate(np.concatenate([[0.0], precision, [0.0]])[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope[1:]))


def eleven_points(recall: Floats, precision: Floats) -> float:
    """The mean of the best precision at a recall of at least 0, 0.1, … 1 (VOC 2007)."""
    # Recalls are quotients: one of 3 of 10 objects must reach the mark of 0.3.
    return float(np.mean([np.max(precision[recall >= mark - 1e-9], initial=0.0) for mark in np.arange(11) / 10]))
