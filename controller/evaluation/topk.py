"""Accuracy of classifiers: how often the right class is the first, or among the first five."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from controller.reports import ClassReport

if TYPE_CHECKING:
    from controller.datasets import Dataset
    from controller.evaluation.classes import Classes
    from controller.evaluation.found import Found

TOP = 5


def figures(
    dataset: Dataset, found: Sequence[Found], classes: Classes
) -> tuple[dict[str, float | None], list[ClassReport]]:
    """``top1`` and ``top5`` of all pictures whose category the model has, and of each category."""
    truth = np.array([dataset.labels[one.index] for one in found], np.int64)
    measured = ~np.isin(truth, classes.left_out)
    first = np.zeros(len(found), np.bool_)
    five = np.zeros(len(found), np.bool_)
    for row, one in enumerate(found):
        right = classes.of(one.labels[:TOP]) == truth[row]
        first[row], five[row] = right[:1].any(), right.any()

    def shares(chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> dict[str, float | None]:
        if not chosen.any():
            return {"top1": None, "top5": None}
        return {"top1": float(first[chosen].mean()), "top5": float(five[chosen].mean())}

    per_class = [
        ClassReport(name=name, truth=int((truth == label).sum()), metrics=shares(truth == label))
        for label, name in enumerate(dataset.categories)
        if label not in classes.left_out
    ]
    return shares(measured), per_class
