"""The golden check: is what a device computes what the source framework computed?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from targets.base import Postprocess, TensorSpec

if TYPE_CHECKING:
    from targets.base import Array


def compare(
    outputs: Sequence[Array],
    references: Sequence[Array],
    specs: Sequence[TensorSpec],
    *,
    rtol: float,
    atol: float,
    postprocess: Postprocess | None = None,
) -> tuple[float, str]:
    """Compare as ``|a - b| <= atol + rtol * |b|``, ``b`` being the reference; NaN and other shapes never pass.

    Detections are matched first, as :mod:`targets.detection.compare` does.

    Returns the largest absolute difference, and what is wrong in words (empty when nothing is).
    """
    if len(outputs) != len(references):
        return float("inf"), f"{len(outputs)} outputs instead of {len(references)}"
    for output, reference, spec in zip(outputs, references, specs, strict=True):
        if output.shape != reference.shape:
            return float("inf"), f"output '{spec.name}' has shape {output.shape} instead of {reference.shape}"
    if postprocess is not None and postprocess.kind == "detections":
        return _compare_detections(outputs, references, specs, postprocess, rtol, atol)
    worst = 0.0
    for output, reference, spec in zip(outputs, references, specs, strict=True):
        name = f"output '{spec.name}'"
        # float64 holds every element type that networks use, without overflow in the difference.
        a, b = output.astype(np.float64), reference.astype(np.float64)
        with np.errstate(invalid="ignore"):
            # Equal infinities are equal; their difference is not a number, and their bound would be infinite.
            difference = np.where(a == b, 0.0, np.abs(a - b))
            bound = atol + rtol * np.abs(b)
            wrong = (a != b) & ~(np.isfinite(b) & (difference <= bound))
        # A difference that is not a number is the worst of all.
        ranked = np.where(np.isnan(difference), np.inf, difference)
        worst = max(worst, float(ranked.max(initial=0.0)))
        if wrong.any():
            at = np.unravel_index(int(np.where(wrong, ranked, -1.0).argmax()), wrong.shape)
            place = "[" + ", ".join(str(int(i)) for i in at) + "]"
            return worst, (
                f"{name}{place} is {a[at]:.6g} where the reference is {b[at]:.6g}: difference {ranked[at]:.3g}, "
                f"bound {bound[at]:.3g}; {int(wrong.sum())} of {wrong.size} elements are out of bounds"
            )
    return worst, ""


class _Rows(NamedTuple):
    """What was found in one picture; see `targets.detection.compare.Rows`."""

    boxes: npt.NDArray[Any]
    scores: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    masks: npt.NDArray[Any] | None = None


def _compare_detections(
    outputs: Sequence[Array],
    references: Sequence[Array],
    specs: Sequence[TensorSpec],
    postprocess: Postprocess,
    rtol: float,
    atol: float,
) -> tuple[float, str]:
    # Most bundles are no detectors', and this is imported where memory is short.
    from targets.detection import compare as detections

    got, wanted = (
        {spec.name: array for spec, array in zip(specs, some, strict=True)} for some in (outputs, references)
    )
    if missing := {"boxes", "scores", "labels", "count"} - got.keys():
        return float("inf"), f"there is no output '{min(missing)}'"
    pictures, most = (*got["scores"].shape, 0, 0)[:2]
    for name, shape in (
        ("scores", (pictures, most)),
        ("boxes", (pictures, most, 4)),
        ("labels", (pictures, most)),
        ("count", (pictures,)),
    ):
        if got[name].shape != shape or (name in ("labels", "count") and got[name].dtype.kind not in "iu"):
            return float("inf"), f"output '{name}' is {got[name].dtype} {got[name].shape}, wanted the shape {shape}"
    cuts = detections.Cuts(postprocess.score_threshold, postprocess.iou_threshold, most)
    worst, wrong = 0.0, ""
    for picture in range(pictures):
        rows: list[_Rows] = []
        for outputs_of, who in ((got, ""), (wanted, "the reference's ")):
            count = int(outputs_of["count"][picture])
            if not 0 <= count <= most:
                return float("inf"), f"{who}output 'count'[{picture}] is {count}, the outputs have {most} rows"
            for name in _Rows._fields:
                if name in outputs_of and outputs_of[name][picture][count:].any():
                    return float("inf"), f"{who}output '{name}'[{picture}] is not zero behind its {count} rows"
            found = {name: outputs_of[name][picture][:count] for name in _Rows._fields if name in outputs_of}
            rows.append(_Rows(**found))
        compared = detections.compare(rows[0], rows[1], rtol, atol, cuts)
        worst = max(worst, compared.worst)
        if not compared.same:
            wrong = wrong or f"picture {picture}: {compared}"
    return worst, wrong
