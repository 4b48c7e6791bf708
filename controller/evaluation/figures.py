"""What is computed of a model's answers to a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from controller.reports import ClassReport

if TYPE_CHECKING:
    from controller.datasets import Dataset
    from controller.evaluation.classes import Classes
    from controller.evaluation.found import Found

#: The figure that counts, by the kind of the data set: accuracy, or mean average precision.
PRIMARY = {"coco": "mAP", "voc": "mAP50", "folders": "top1"}
#: All figures that one can ask for as the one that counts.
NAMES = {
    "coco": tuple(
        f"{kind}{name}"
        for kind in ("", "segm_")
        for name in (
            *("mAP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
            *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
        )
    ),
    "voc": ("mAP50", "mAP50_11"),
    "folders": ("top1", "top5"),
}


@dataclass
class Figures:
    #: Of all classes; 0..1, None where there is nothing to measure it on.
    metrics: dict[str, float | None]
    classes: list[ClassReport]
    #: (rows, columns) of counts: what it is, by what the model says. The last ones of a detector are the background.
    confusion: npt.NDArray[np.int64]
    names: tuple[str, ...]
    #: What a person should know of the figures.
    notes: list[str] = field(default_factory=list)


def compute(dataset: Dataset, found: Sequence[Found], classes: Classes) -> Figures:
    """The figures of a data set's kind. Pictures that could not be read (`Found.bad`) are left out."""
    from controller.evaluation import coco, confusion, topk, voc

    found = [one for one in found if not one.bad]
    if dataset.kind == "folders":
        metrics, per_class = topk.figures(dataset, found, classes)
        matrix = confusion.of_labels(dataset, found, classes)
        notes: list[str] = []
    else:
        compute_kind = coco.figures if dataset.kind == "coco" else voc.figures
        metrics, per_class, notes = compute_kind(dataset, found, classes)
        matrix = confusion.of_boxes(dataset, found, classes)
    if classes.left_out:
        from controller.datasets.base import some

        names = some(dataset.categories[index] for index in classes.left_out)
        notes.append(f"{len(classes.left_out)} categories have no class of the model and are not measured: {names}")
    return Figures(metrics, per_class, matrix, dataset.categories, notes)
