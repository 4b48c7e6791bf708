"""COCO's figures, by its own evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from controller.reports import ClassReport

if TYPE_CHECKING:
    from controller.datasets import Dataset, Segmentation
    from controller.evaluation.classes import Classes
    from controller.evaluation.found import Found
    from targets.pictures.found import Mask

Iou = Literal["bbox", "segm"]

#: What the evaluator's summary holds, in its order.
_STATS = (
    *("mAP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)


def figures(
    dataset: Dataset, found: Sequence[Found], classes: Classes
) -> tuple[dict[str, float | None], list[ClassReport], list[str]]:
    """The twelve figures of the summary, for boxes and, where the model gives masks, for those (``segm_…``)."""
    metrics, per_class = _evaluated(dataset, found, classes, "bbox")
    notes: list[str] = []
    if any(one.masks for one in found):
        if dataset.has_outlines:
            more, of_masks = _evaluated(dataset, found, classes, "segm")
            metrics |= {f"segm_{name}": value for name, value in more.items()}
            for one, other in zip(per_class, of_masks, strict=True):
                one.metrics |= {f"segm_{name}": value for name, value in other.metrics.items()}
        else:
            notes.append("masks are not measured: not every object of the data set has an outline")
    return metrics, per_class, notes


def _evaluated(
    dataset: Dataset, found: Sequence[Found], classes: Classes, iou: Iou
) -> tuple[dict[str, float | None], list[ClassReport]]:
    from pycocotools import coco, cocoeval

    # They print as they go. Standard output cannot be sent elsewhere for that: it is also that of other threads.
    coco.print = cocoeval.print = _ignore
    labels = [label for label in range(len(dataset.categories)) if label not in classes.left_out]
    pictures = [one.index for one in found]
    evaluation = cocoeval.COCOeval(_truth(dataset, pictures, iou), _results(dataset, found, classes, iou), iou)
    evaluation.params.imgIds = pictures
    evaluation.params.catIds = labels
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    metrics = {name: _value(value) for name, value in zip(_STATS, evaluation.stats, strict=True)}
    # Thresholds, recalls, categories, areas (all first), detections a picture (100 last).
    precision = evaluation.eval["precision"][..., 0, -1]
    recall = evaluation.eval["recall"][..., 0, -1]
    counts = np.zeros(len(dataset.categories), np.int64)
    for index in pictures:
        each = dataset.objects[index]
        np.add.at(counts, each.labels[~each.ignored], 1)
    per_class = [
        ClassReport(
            name=dataset.categories[label],
            truth=int(counts[label]),
            metrics={
                "AP": _mean(precision[:, :, column]),
                "AP50": _mean(precision[0, :, column]),
                "AP75": _mean(precision[5, :, column]),
                "AR": _mean(recall[:, column]),
            },
        )
        for column, label in enumerate(labels)
    ]
    return metrics, per_class


def _ignore(*words: object, **options: object) -> None:
    """In the place of ``print``."""


def _value(given: float) -> float | None:
    """The evaluator's -1 is what there is nothing to measure on."""
    return None if given < 0 else float(given)


def _mean(values: Any) -> float | None:
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None


def _truth(dataset: Dataset, pictures: Sequence[int], iou: Iou) -> Any:
    annotations: list[dict[str, Any]] = []
    for index in pictures:
        each = dataset.objects[index]
        for number, (box, label, ignored, area) in enumerate(
            zip(each.boxes.tolist(), each.labels.tolist(), each.ignored.tolist(), each.areas.tolist(), strict=True)
        ):
            one = _annotation(len(annotations), index, label, box, area)
            one["iscrowd"] = int(ignored)
            if iou == "segm":
                outline, size = each.outlines[number], dataset.pictures[index].size
                assert outline is not None and size is not None
                one["segmentation"] = _runs(outline, size)
            annotations.append(one)
    return _documents(dataset, pictures, annotations)


def _results(dataset: Dataset, found: Sequence[Found], classes: Classes, iou: Iou) -> Any:
    from pycocotools import mask

    annotations: list[dict[str, Any]] = []
    for one in found:
        for number, (label, score, box) in enumerate(
            zip(classes.of(one.labels).tolist(), one.scores, one.boxes, strict=True)
        ):
            if label < 0:
                continue
            made = _annotation(len(annotations), one.index, label, box, (box[2] - box[0]) * (box[3] - box[1]))
            made["score"] = score
            if iou == "segm":
                size = dataset.pictures[one.index].size
                assert size is not None
                made["segmentation"] = {"size": [size[1], size[0]], "counts": one.masks[number].encode()}
                # As the evaluator reads results: their sizes are those of their masks.
                made["area"] = float(mask.area(made["segmentation"]))
            annotations.append(made)
    return _documents(dataset, [one.index for one in found], annotations)


def _annotation(number: int, index: int, label: int, box: Sequence[float], area: float) -> dict[str, Any]:
    # An id of 0 would count as no match at all.
    corner = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    return {"id": number + 1, "image_id": index, "category_id": label, "bbox": corner, "area": area, "iscrowd": 0}


def _documents(dataset: Dataset, pictures: Sequence[int], annotations: list[dict[str, Any]]) -> Any:
    from pycocotools.coco import COCO

    images = []
    for index in pictures:
        width, height = dataset.pictures[index].size or (0, 0)
        images.append({"id": index, "width": width, "height": height})
    made = COCO()
    made.dataset = {
        "info": {},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in enumerate(dataset.categories)],
    }
    made.createIndex()
    return made


def _runs(outline: Segmentation, size: tuple[int, int]) -> Any:
    from pycocotools import mask

    width, height = size
    if outline.runs:
        return mask.frPyObjects({"size": [height, width], "counts": list(outline.runs)}, height, width)
    return mask.merge(mask.frPyObjects([list(polygon) for polygon in outline.polygons], height, width))


def compressed(given: Mask) -> str:
    """A mask as COCO's compressed run lengths."""
    from pycocotools import mask

    height, width = given.size
    counts: bytes = mask.frPyObjects({"size": [height, width], "counts": given.counts}, height, width)["counts"]
    return counts.decode()
