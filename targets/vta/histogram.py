"""How large the values of a tensor are over a calibration set, in one pass and little memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from targets.vta.qgraph import LIMIT

if TYPE_CHECKING:
    import numpy.typing as npt

#: Wide enough that a step of int8 spans many bins even where most of the range saturates.
BINS = 1 << 13
#: Exponents within which 2^±e is an ordinary float32.
MIN_EXPONENT, MAX_EXPONENT = -100, 100


class Histogram:
    """Counts of magnitudes in equal bins from 0 to a power of two, which doubles when a value exceeds it."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._top = MIN_EXPONENT
        self._counts = np.zeros(BINS, np.int64)

    def add(self, x: npt.NDArray[np.float32]) -> None:
        """Count the finite values ``x``, of any shape. Zeros cost nothing at any exponent, so they are left out."""
        magnitudes = np.abs(x[x != 0])
        if not magnitudes.size:
            return
        peak = float(magnitudes.max())
        self.peak = max(self.peak, peak)
        self._widen(math.frexp(peak)[1])
        bins = (magnitudes * np.float64(BINS * 2.0**-self._top)).astype(np.int64)
        self._counts += np.bincount(bins, minlength=BINS)

    def error(self, exponent: int) -> float:
        """Sum of squared differences between the values and what int8 of ``exponent`` makes of them."""
        used = np.flatnonzero(self._counts)
        values = (used + 0.5) * (2.0**self._top / BINS)
        step = 2.0**exponent
        quantised = np.minimum(np.floor(values / step + 0.5), LIMIT) * step
        return float(np.sum(self._counts[used] * (values - quantised) ** 2))

    def _widen(self, top: int) -> None:
        if top <= self._top:
            return
        if self._counts.any():
            factor = 1 << min(top - self._top, BINS.bit_length() - 1)
            merged = self._counts.reshape(-1, factor).sum(1)
            self._counts = np.zeros(BINS, np.int64)
            self._counts[: len(merged)] = merged
        self._top = top


def covering(peak: float) -> int:
    """The smallest exponent at which int8 represents ``peak`` without saturating, as far as rounding goes."""
    if not peak:
        return MIN_EXPONENT
    return min(max(math.ceil(math.log2(peak / (LIMIT + 0.5))), MIN_EXPONENT), MAX_EXPONENT)
