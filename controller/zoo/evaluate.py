"""Accuracy of the small networks on freshly drawn pictures, run by ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from controller.zoo import draw
from controller.zoo.shapes import CLASSES
from targets.base import Postprocess, Preprocess
from targets.pictures.answers import detect
from targets.pictures.place import place
from targets.pictures.prepare import prepare

if TYPE_CHECKING:
    from targets.base import Array

Run = Callable[["Array"], "list[Array]"]


def onnx_session(model: Path | bytes) -> Run:
    """A function from the first input to all outputs, on one thread so that results do not depend on the machine."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda array: list(session.run(None, {name: array}))


def top1(path: Path, preprocess: Preprocess, postprocess: Postprocess, seed: int, count: int) -> float:
    """Share of ``count`` pictures drawn with ``seed`` that are named rightly."""
    from PIL import Image

    run = onnx_session(path)
    right = 0
    for index in range(count):
        pixels, label = draw.picture(seed, index)
        (logits, *_) = run(prepare(Image.fromarray(pixels), preprocess))
        right += int(np.argmax(logits)) == label
    return right / count


def detections(
    run: Run, scene: draw.Scene, image_id: int, preprocess: Preprocess, postprocess: Postprocess
) -> list[dict[str, Any]]:
    """What a network finds in a scene, as COCO results."""
    from PIL import Image

    image = Image.fromarray(scene.picture)
    outputs = run(prepare(image, preprocess))
    where = place(image.size, preprocess)
    found = detect(outputs, (), postprocess, where, classes=len(CLASSES), threshold=0.01)
    results = []
    for (x0, y0, x1, y1), label, score in zip(
        found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True
    ):
        box = [x0, y0, x1 - x0, y1 - y0]
        results.append({"image_id": image_id, "category_id": label + 1, "bbox": box, "score": score})
    return results


def coco_map(truth: dict[str, Any], results: list[dict[str, Any]]) -> float:
    """mAP@[.5:.95] by pycocotools, which prints; that goes nowhere."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not results:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def mean_average_precision(
    path: Path, preprocess: Preprocess, postprocess: Postprocess, seed: int, count: int
) -> float:
    """COCO mAP@[.5:.95] on ``count`` scenes drawn with ``seed``."""
    run = onnx_session(path)
    scenes = list(draw.scenes(seed, count))
    truth = draw.coco_annotations(scenes, [f"{number}.png" for number in range(count)])
    results: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes, 1):
        results += detections(run, scene, number, preprocess, postprocess)
    return coco_map(truth, results)
