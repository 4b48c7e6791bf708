"""The golden check: is what a device computes what the source framework computed?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from targets.base import TensorSpec

if TYPE_CHECKING:
    from targets.base import Array


def compare(
    outputs: Sequence[Array], references: Sequence[Array], specs: Sequence[TensorSpec], *, rtol: float, atol: float
) -> tuple[float, str]:
    """Compare as ``|a - b| <= atol + rtol * |b|``, ``b`` being the reference; NaN and other shapes never pass.

    Returns the largest absolute difference, and what is wrong in words (empty when nothing is).
    """
    if len(outputs) != len(references):
        return float("inf"), f"{len(outputs)} outputs instead of {len(references)}"
    worst = 0.0
    for output, reference, spec in zip(outputs, references, specs, strict=True):
        name = f"output '{spec.name}'"
        if output.shape != reference.shape:
            return float("inf"), f"{name} has shape {output.shape} instead of {reference.shape}"
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
