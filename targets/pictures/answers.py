"""A model's outputs, read as its `Postprocess` says: labels, or boxes and masks in the pixels of the original picture.

Outputs come from a device and are checked: every error has the code ``bad-output``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from targets.base import FleetError, Postprocess, TensorSpec
from targets.detection import ssd
from targets.pictures.found import Box, TopLabel
from targets.pictures.masks import Patch, encode, of_input, within_box
from targets.pictures.place import Place

if TYPE_CHECKING:
    from targets.base import Array

Floats = npt.NDArray[np.float64]
#: Labels of a classifier that are told when nobody says how many.
TOP = 5


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in one picture, best first.

    ``boxes`` (n, 4) are corners x0, y0, x1, y1 in pixels of the original picture and inside of it, unless a model's
    post-processing lets them go beyond; ``scores`` (n,) in 0..1, ``labels`` (n,) the numbers of classes. ``masks``, if
    there are any, are as the model gives them: (n, S, S) float32 within each box or (n, H, W) uint8 of the whole input;
    `patch` brings one to the original.
    """

    place: Place
    boxes: Floats
    scores: Floats
    labels: npt.NDArray[np.int64]
    masks: Array | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def taken(self, which: slice | npt.NDArray[np.bool_]) -> Detections:
        """Some of them, in the same order."""
        return dataclasses.replace(
            self,
            boxes=self.boxes[which],
            scores=self.scores[which],
            labels=self.labels[which],
            masks=None if self.masks is None else self.masks[which],
        )

    def patch(self, index: int) -> Patch:
        """The mask of one of them in the original picture; only for models that have masks."""
        assert self.masks is not None
        mask = self.masks[index]
        if mask.dtype == np.uint8:
            return of_input(mask, self.place)
        return within_box(mask.astype(np.float32, copy=False), self.boxes[index], self.place.original)


def of_picture(outputs: Sequence[Array], row: int) -> list[Array]:
    """The outputs of one picture of a batch, with a batch of one."""
    if not all(array.ndim and row < len(array) for array in outputs):
        raise _wrong(outputs, f"a batch of {row + 1} or more")
    return [array[row : row + 1] for array in outputs]


def probabilities(outputs: Sequence[Array], postprocess: Postprocess | None) -> Floats:
    """Of each class (classes,), of one picture's outputs. What does not say otherwise is a classifier with logits."""
    if not outputs or outputs[0].size == 0 or outputs[0].size != outputs[0].shape[-1]:
        raise _wrong(outputs, "(1, classes)")
    _check_finite(outputs[:1])
    scores = outputs[0].reshape(-1).astype(np.float64)
    if postprocess is not None and postprocess.softmaxed:
        return scores
    return softmax(scores)


def softmax(logits: Floats) -> Floats:
    """Probabilities along the last axis."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Floats = raised / raised.sum(axis=-1, keepdims=True)
    return shares


def detect(
    outputs: Sequence[Array],
    specs: Sequence[TensorSpec],
    postprocess: Postprocess,
    place: Place,
    *,
    classes: int = 0,
    threshold: float | None = None,
) -> Detections:
    """Read one picture's outputs (each with a batch of one) of a detector; ``specs`` name those of ``detections``.

    ``classes``: how many the model has, 0 if nobody knows. ``threshold``: lowest score; None takes the model's own. A
    model of kind ``detections`` has applied its own before, so that a lower one changes nothing.
    """
    if postprocess.kind == "ssd":
        found = _ssd(outputs, postprocess, place, threshold)
    else:
        named = {spec.name: array for spec, array in zip(specs, outputs, strict=True)}
        found = _detections(named, place, relative=postprocess.coordinates == "relative")
    if len(found) and (found.labels.min() < 0 or (classes and found.labels.max() >= classes)):
        wrong = found.labels.min() if found.labels.min() < 0 else found.labels.max()
        raise _bad(f"class number {wrong} is not one of the model's {classes or 'classes'}")
    if threshold is not None:
        found = found.taken(found.scores >= threshold)
    if (np.diff(found.scores) > 0).any():
        order = np.argsort(-found.scores, kind="stable")
        found = dataclasses.replace(
            found,
            boxes=found.boxes[order],
            scores=found.scores[order],
            labels=found.labels[order],
            masks=None if found.masks is None else found.masks[order],
        )
    return found


def interpret(
    outputs: Sequence[Array],
    specs: Sequence[TensorSpec],
    postprocess: Postprocess,
    labels: Sequence[str],
    place: Place,
    *,
    top: int | None = None,
    threshold: float | None = None,
) -> list[TopLabel] | list[Box]:
    """One picture's outputs in words: the ``top`` labels (5), or the ``top`` boxes (all) that score ``threshold``."""
    if postprocess.kind == "classify":
        return top_labels(outputs, postprocess, labels, TOP if top is None else top)
    found = detect(outputs, specs, postprocess, place, classes=len(labels), threshold=threshold)
    return boxes(found.taken(slice(top)), labels)


def top_labels(
    outputs: Sequence[Array], postprocess: Postprocess | None, labels: Sequence[str], top: int
) -> list[TopLabel]:
    """The ``top`` most probable classes, best first."""
    scores = probabilities(outputs, postprocess)
    best = np.argsort(-scores, kind="stable")[:top]
    return [TopLabel(label=name(labels, int(i)), index=int(i), score=float(scores[i])) for i in best]


def boxes(found: Detections, labels: Sequence[str]) -> list[Box]:
    """What was found, for JSON documents: with a mask each if the model gives masks."""
    return [
        Box(
            label=name(labels, int(found.labels[i])),
            score=float(found.scores[i]),
            xyxy=tuple(found.boxes[i].tolist()),
            mask=None if found.masks is None else encode(found.patch(i), found.place.original),
        )
        for i in range(len(found))
    ]


def name(labels: Sequence[str], index: int) -> str:
    """The class of that number, which is its name where there is no other."""
    return labels[index] if index < len(labels) else str(index)


def _ssd(outputs: Sequence[Array], postprocess: Postprocess, place: Place, threshold: float | None) -> Detections:
    if len(outputs) < 2:
        raise _wrong(outputs, "locations and classes")
    _check_finite(outputs[:2])
    if threshold is not None:
        # The threshold itself is among what is asked for here; the network's takes more than it.
        below = float(np.nextafter(np.float32(threshold), np.float32(-1)))
        postprocess = msgspec.structs.replace(postprocess, score_threshold=below)
    selected = ssd.detect(outputs[0], outputs[1], postprocess, place.canvas[::-1])
    count = int(selected.counts[0])
    return Detections(
        place=place,
        boxes=_to_original(
            selected.boxes[0, :count],
            place,
            relative=postprocess.coordinates == "relative",
            beyond=postprocess.beyond,
        ),
        scores=selected.scores[0, :count].astype(np.float64),
        labels=selected.labels[0, :count],
    )


def _detections(named: dict[str, Array], place: Place, *, relative: bool) -> Detections:
    missing = [each for each in ("boxes", "scores", "labels", "count") if each not in named]
    if missing:
        raise _bad(f"there is no output '{missing[0]}'")
    rows, scores, labels, counts = (named[each] for each in ("boxes", "scores", "labels", "count"))
    most = scores.shape[-1] if scores.ndim else 0
    for each, array, shape in (
        ("boxes", rows, (1, most, 4)),
        ("scores", scores, (1, most)),
        ("labels", labels, (1, most)),
        ("count", counts, (1,)),
    ):
        if array.shape != shape:
            raise _bad(f"output '{each}' has the shape {array.shape}, wanted {shape}")
    if labels.dtype.kind not in "iu" or counts.dtype.kind not in "iu":
        raise _bad(f"labels and count are numbers of type {labels.dtype} and {counts.dtype}, not integers")
    count = int(counts[0])
    if not 0 <= count <= most:
        raise _bad(f"{count} boxes were found where {most} are the most")
    _check_finite([rows, scores])
    of_boxes = named.get("masks")
    if of_boxes is not None:
        of_boxes = _checked_masks(of_boxes, most, place)[0, :count]
    kept = scores[0, :count].astype(np.float64)
    if count and not 0 <= kept.min() <= kept.max() <= 1 + 1e-3:
        raise _bad(f"scores go from {kept.min():.6g} to {kept.max():.6g}, wanted 0 to 1")
    return Detections(
        place=place,
        boxes=_to_original(rows[0, :count].astype(np.float32), place, relative=relative),
        scores=kept,
        labels=labels[0, :count].astype(np.int64),
        masks=of_boxes,
    )


def _checked_masks(array: Array, most: int, place: Place) -> Array:
    if array.dtype == np.uint8:
        wanted = (1, most, *place.canvas[::-1])
        good = array.shape == wanted
    else:
        side = array.shape[-1] if array.ndim else 0
        wanted = (1, most, side, side)
        good = array.shape == wanted and side > 0 and array.dtype.kind == "f"
    if not good:
        raise _bad(f"output 'masks' is {array.dtype} with the shape {array.shape}, wanted float32 {wanted}")
    _check_finite([array])
    return array


def _to_original(corners: npt.NDArray[np.float32], place: Place, *, relative: bool, beyond: bool = False) -> Floats:
    """Corners in the input, relative to the picture in it or in pixels, in the original's pixels; inside of it unless
    they may go ``beyond`` its edges."""
    if relative:
        scale, first = (
            np.array([each[axis] * place.original[axis] / place.resized[axis] for axis in (0, 1, 0, 1)])
            for each in (place.kept, place.corner)
        )
        found = corners.astype(np.float64) * scale + first
    else:
        # As torchvision.models.detection.transform.resize_boxes: a ratio in float32.
        ratio = np.array(place.original * 2, np.float32) / np.array(place.resized * 2, np.float32)
        with np.errstate(over="ignore"):
            found = ((corners + np.array(place.corner * 2, np.float32)) * ratio).astype(np.float64)
    kept: Floats = found if beyond else np.clip(found, 0, np.array(place.original * 2, np.float64))
    if not np.isfinite(kept).all():
        raise _bad("the boxes hold values that are no finite numbers")
    return kept


def _check_finite(arrays: Sequence[Array]) -> None:
    for array in arrays:
        if array.dtype.kind not in "fiub":
            raise _bad(f"outputs of type {array.dtype} are no numbers")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise _bad("the outputs hold values that are no finite numbers")


def _wrong(arrays: Sequence[Array], wanted: str) -> FleetError:
    shapes = ", ".join(str(array.shape) for array in arrays) or "no outputs"
    return _bad(f"the outputs have shapes {shapes}, wanted {wanted}")


def _bad(what: str) -> FleetError:
    return FleetError(what, code="bad-output")
