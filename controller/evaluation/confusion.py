"""Which category is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from controller.evaluation.overlaps import overlaps

if TYPE_CHECKING:
    from controller.datasets import Dataset
    from controller.evaluation.classes import Classes
    from controller.evaluation.found import Found

Counts = npt.NDArray[np.int64]

#: Overlap from which on a detection is one of an object, whatever it calls it.
MIN_OVERLAP = 0.5
#: Lowest score of a detection that takes part: what `fleet run` shows.
MIN_SCORE = 0.3


def of_labels(dataset: Dataset, found: Sequence[Found], classes: Classes) -> Counts:
    """(categories, categories + 1): pictures by what they are and by the model's first class.

    The last column are classes that the data set does not have.
    """
    count = len(dataset.categories)
    matrix = np.zeros((count, count + 1), np.int64)
    for one in found:
        said = int(classes.of(one.labels[:1])[0]) if one.labels else -1
        matrix[dataset.labels[one.index], said] += 1
    return matrix


def of_boxes(dataset: Dataset, found: Sequence[Found], classes: Classes) -> Counts:
    """(categories + 1, categories + 1): objects by what they are and by what the box on them says.

    Boxes take, best first, the free object that they overlap most. The last column are objects that no box is on, the
    last row boxes on nothing. Crowds and difficult objects, and boxes on them, do not count.
    """
    count = len(dataset.categories)
    matrix = np.zeros((count + 1, count + 1), np.int64)
    for one in found:
        truth = dataset.objects[one.index]
        category = classes.of(one.labels)
        scores = np.array(one.scores, np.float64)
        chosen = np.flatnonzero((scores >= MIN_SCORE) & (category >= 0))
        chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
        iou = overlaps(np.array(one.boxes, np.float64).reshape(-1, 4)[chosen], truth.boxes)
        iou[iou < MIN_OVERLAP] = 0
        free = ~truth.ignored
        for row, label in zip(iou, category[chosen], strict=True):
            candidates = row * free
            if candidates.any():
                best = int(candidates.argmax())
                free[best] = False
                matrix[truth.labels[best], label] += 1
            elif not row[truth.ignored].any():
                matrix[count, label] += 1
        np.add.at(matrix[:, count], truth.labels[free], 1)
    return matrix
