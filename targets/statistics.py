"""Statistics of latencies that are neither independent nor normal.

Successive latencies on a real machine are correlated (clocks, caches, other processes) and drift, so intervals that
treat each sample as independent are far too narrow. Everything here works on *units*: medians of at most `MAX_UNITS`
contiguous batches, long enough to be nearly independent (Schmeiser 1982, "Batch size effects in the analysis of
simulation output", advises 10 to 30).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Lengths = Sequence[int] | npt.NDArray[np.int32]

#: Most units a run is divided into.
MAX_UNITS = 20
#: Groups of units that the second, coarser look uses: what varies slowly shows only there.
COARSE_UNITS = 5
#: Share cut off at each end of the units, so that a burst of other load does not decide the width.
TRIM = 0.2

#: Half-width, relative, below which no interval of a median is believed. Measured with a model of a millisecond, each
#: run in a process of its own on an otherwise idle machine: runs of one release mostly differ by 1 %, by 2.7 % at most.
REPEATABILITY = 0.015

# Two-sided 95 % quantiles of Student's t for 1 to 20 degrees of freedom; above, 1.96 + 2.6/df is within 0.004.
_T95 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Milliseconds. p90 and p99 are nearest-rank: a latency that was seen, never one between two.

    ``ci50`` is the 95 % confidence interval of the median, see :func:`median_interval`.
    """

    mean: float
    std: float
    min: float
    p50: float
    p90: float
    p99: float
    max: float
    ci50: tuple[float, float]


def summarise(samples: Sequence[float] | Floats, blocks: Lengths = ()) -> Statistics:
    """Statistics of ``samples`` (milliseconds, in the order taken), which were taken in ``blocks`` of these lengths.

    Raises :class:`ValueError` when there are none, or when the blocks do not add up.
    """
    values = np.asarray(samples, dtype=np.float64)
    if values.size == 0:
        raise ValueError("no samples, no statistics")
    p90, p99 = np.percentile(values, (90, 99), method="inverted_cdf")
    return Statistics(
        mean=float(values.mean()),
        std=float(values.std(ddof=1)) if values.size > 1 else 0.0,
        min=float(values.min()),
        p50=float(np.median(values)),
        p90=float(p90),
        p99=float(p99),
        max=float(values.max()),
        ci50=median_interval(values, blocks),
    )


def units(samples: Sequence[float] | Floats, blocks: Lengths = (), count: int = MAX_UNITS) -> Floats:
    """Medians of at most ``count`` contiguous batches of whole blocks, in order; shape (units,).

    Without ``blocks`` every sample is a block of its own.
    """
    values = np.asarray(samples, dtype=np.float64)
    lengths = np.asarray(blocks, dtype=np.int64) if len(blocks) else np.ones(values.size, dtype=np.int64)
    if int(lengths.sum()) != values.size or (lengths <= 0).any():
        raise ValueError(f"blocks of {int(lengths.sum())} samples in all do not fit {values.size} samples")
    ends = np.cumsum(lengths)
    last = [part[-1] for part in np.array_split(ends, min(count, ends.size))]
    return np.array([np.median(part) for part in np.split(values, last[:-1])])


def correlation(values: Floats) -> float:
    """Lag-1 autocorrelation, corrected for the bias of short series (Marriott & Pope 1954), within 0..0.9."""
    count = values.size
    centred = values - values.mean()
    power = float(centred @ centred)
    if count < 6 or power <= 0.0:
        return 0.0
    lag = float(centred[1:] @ centred[:-1]) / power
    return min(max((count * lag + 1) / (count - 4), 0.0), 0.9)


def median_interval(samples: Sequence[float] | Floats, blocks: Lengths = ()) -> tuple[float, float]:
    """The 95 % confidence interval of the median of positive ``samples``, in their unit, within their range.

    Honest under correlation and drift, see :func:`centre_interval`, which it asks for the logarithms: what disturbs a
    latency multiplies it. Simulated coverage with AR(1) noise between blocks: 98 % at r = 0, 95 % at r = 0.6, 87 % at
    r = 0.8.

    What stays the same for a whole run, such as where its process lies in memory, cannot be seen from inside it
    (Mytkowicz et al. 2009, "Producing wrong data without doing anything obviously wrong"): `REPEATABILITY` is the least
    that the interval allows for it.
    """
    values = np.asarray(samples, dtype=np.float64)
    low, high = np.exp(centre_interval(np.log(values), blocks))
    median = float(np.median(values))
    low = min(float(low), median * (1 - REPEATABILITY))
    high = max(float(high), median * (1 + REPEATABILITY))
    # Rounding must not move the median out of its interval.
    return min(max(low, float(values.min())), median), max(min(high, float(values.max())), median)


def centre_interval(values: Sequence[float] | Floats, blocks: Lengths = ()) -> tuple[float, float]:
    """The 95 % confidence interval of the median of any ``values``.

    It is centred on their median (sectioning: Asmussen & Glynn 2007, *Stochastic Simulation*, III.5), and its
    half-width is the larger of two:

    - a trimmed t-interval over up to 20 units (Tukey & McLaughlin 1963: variance of the Winsorised units), with the
      number of units reduced to ``n (1 - r) / (1 + r)`` for their lag-1 correlation ``r``;
    - a t-interval over 5 means of neighbouring Winsorised units, whose spread shows what varies too slowly for the
      first.

    It is never narrower than the order-statistic interval of independent values.
    """
    values = np.asarray(values, dtype=np.float64)
    centre = float(np.median(values))
    half = _half_width(units(values, blocks))
    low, high = _order_interval(values)
    return min(centre - half, low), max(centre + half, high)


def student95(freedom: float) -> float:
    """Two-sided 95 % quantile of Student's t, from above for fractional degrees of freedom."""
    if freedom <= len(_T95):
        return _T95[max(int(freedom), 1) - 1]
    return 1.96 + 2.6 / freedom


def _half_width(values: Floats) -> float:
    """Half-width of the 95 % interval of the trimmed mean of units, for the wider of both looks."""
    count = values.size
    if count < 2:
        return 0.0
    cut = int(TRIM * count)
    ordered = np.sort(values)
    winsorised = np.clip(values, ordered[cut], ordered[count - 1 - cut])
    r = correlation(winsorised)
    inflation = (1 + r) / (1 - r)
    freedom = max((count - 2 * cut) / inflation - 1, COARSE_UNITS - 1)
    fine = student95(freedom) * float(winsorised.std(ddof=1)) * math.sqrt(inflation / count)
    coarse = np.array([part.mean() for part in np.array_split(winsorised, min(COARSE_UNITS, count))])
    coarse_width = student95(coarse.size - 1) * float(coarse.std(ddof=1)) / math.sqrt(coarse.size)
    return max(fine, coarse_width) / (1 - 2 * cut / count)


def _order_interval(values: Floats) -> tuple[float, float]:
    """The distribution-free interval of the median of independent samples (normal approximation of its ranks)."""
    count = values.size
    reach = 0.98 * math.sqrt(count)
    low = max(math.floor(count / 2 - reach), 0)
    high = min(math.ceil(count / 2 + reach), count - 1)
    ordered = np.partition(values, (low, high))
    return float(ordered[low]), float(ordered[high])
