"""Whether one run is faster than another, or whether nothing can be told apart.

Two figures must agree before a difference is called one: significance, on units that are nearly independent, and size.

- **Units** are medians of up to 20 contiguous batches (`targets.statistics.units`), never single queries: thousands of
  correlated samples make any drift "significant". Units that are still correlated are made longer and fewer, until
  there are as many as independent ones would be worth.
- **Runs apart** are compared with the Mann-Whitney U test; the effect is Vargha & Delaney's A (2000): the chance that a
  unit of the second is slower than one of the first, ties half.
- **Interleaved runs** are compared pair by pair, over whole A B B A quartets so that linear drift cancels, with
  Wilcoxon's signed-rank test; A is then the share of pairs in which the second is slower.
- The interval of the ratio follows from those of the medians (`targets.statistics.centre_interval`, on logarithms) by
  Zou & Donner's MOVER (2008); for pairs it is the interval of the median ratio. A bootstrap of so few units is too
  narrow: with AR(1) noise between them its 95 % interval covers 86 % at r = 0.6, this one 98 %.

A difference is told apart when p <= `ALPHA`, the interval leaves out 1 and the medians differ by at least `THRESHOLD`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from targets.base import FleetError
from targets.statistics import MAX_UNITS, Floats, Lengths, centre_interval, correlation, units

if TYPE_CHECKING:
    from agent.protocol import BenchProtocol
    from controller.reports import RunReport
    from controller.results import Results

#: Largest probability of so clear a difference between equals.
ALPHA = 0.01
#: Smallest difference of medians worth telling, as a ratio: below, layout of memory and code alone can make it.
THRESHOLD = 0.02
#: Fewest units that correlated ones are joined to: the fewest from which the tests can reach `ALPHA`.
MIN_UNITS = 5
MIN_PAIRS = 8


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: latencies in milliseconds in the order taken, and the lengths of their blocks."""

    name: str
    samples: Sequence[float] | Floats
    blocks: Lengths = ()


class Comparison(msgspec.Struct, kw_only=True):
    """What became of ``b`` against ``a``. ``ratio`` is of medians, above 1 when ``b`` is slower."""

    a: str
    b: str
    verdict: Literal["faster", "slower", "same"]
    ratio: float
    #: 95 % confidence interval of ``ratio``.
    ratio_ci: tuple[float, float]
    p_value: float
    #: Vargha-Delaney A: chance that ``b`` is slower, 0.5 when neither is.
    effect: float
    paired: bool
    units: tuple[int, int]
    #: All of it in one sentence.
    words: str
    #: What else differs between the two, or speaks against either.
    caveats: list[str] = msgspec.field(default_factory=list)


def compare(a: Side, b: Side, *, paired: bool = False, caveats: Sequence[str] = ()) -> Comparison:
    """Compare ``b`` against ``a``; ``paired`` when block i of one was taken next to block i of the other.

    Raises :class:`FleetError` (``bad-run``) when a side has no samples, or paired sides do not have the same blocks.
    """
    if not len(a.samples) or not len(b.samples):
        raise FleetError(f"{a.name if not len(a.samples) else b.name} has no samples to compare", code="bad-run")
    if paired:
        differences = _differences(a, b)
        p_value, effect = _wilcoxon(differences)
        counts = (differences.size, differences.size)
        ratio, low, high = np.exp((np.median(differences), *centre_interval(differences)))
    else:
        one, two = _units(a), _units(b)
        p_value, effect = _mann_whitney(one, two)
        counts = (one.size, two.size)
        ratio, low, high = np.exp(_mover(a, b))
    apart = p_value <= ALPHA and not low <= 1 <= high and max(ratio, 1 / ratio) - 1 >= THRESHOLD
    verdict: Literal["faster", "slower", "same"] = "same" if not apart else "slower" if ratio > 1 else "faster"
    found = Comparison(
        a=a.name,
        b=b.name,
        verdict=verdict,
        ratio=float(ratio),
        ratio_ci=(float(low), float(high)),
        p_value=p_value,
        effect=effect,
        paired=paired,
        units=counts,
        words="",
        caveats=list(caveats),
    )
    found.words = _words(found)
    return found


def compare_runs(results: Results, a: str, b: str) -> Comparison:
    """Compare two stored runs by id or its beginning, as pairs when they were interleaved; says what else differs.

    Raises :class:`FleetError`: those of `Results.get`, ``same-run``, and ``other-protocol``.
    """
    one, two = results.get(a), results.get(b)
    if one.id == two.id:
        raise FleetError(
            f"'{a}' and '{b}' are the same run", code="same-run", hint="`fleet results list` shows all runs"
        )
    check_protocol(one, two.protocol)
    caveats = [f"{run.id} is INVALID: {run.reason}" for run in (one, two) if run.verdict == "INVALID"]
    for name in ("device", "target", "model", "engine", "batch", "simulated"):
        left, right = getattr(one, name), getattr(two, name)
        if left != right:
            caveats.append(f"{name}: {left} against {right}")
    samples_one, blocks_one = results.samples(one.id)
    samples_two, blocks_two = results.samples(two.id)
    paired = two.interleaved_with == one.id or one.interleaved_with == two.id
    return compare(
        Side(one.id, samples_one, blocks_one), Side(two.id, samples_two, blocks_two), paired=paired, caveats=caveats
    )


def check_protocol(run: RunReport, protocol: BenchProtocol) -> None:
    """Raises :class:`FleetError` (``other-protocol``) when the run was measured by another protocol."""
    if run.protocol != protocol:
        raise FleetError(
            f"run {run.id} was measured by the protocol '{run.protocol}', the other by '{protocol}':"
            " their figures do not mean the same",
            code="other-protocol",
            hint="measure one of them again: `fleet bench --protocol` takes either",
        )


def _units(side: Side) -> Floats:
    """Units of one side, as many as are nearly independent."""
    return _independent(MIN_UNITS, lambda count: units(side.samples, side.blocks, count))


def _differences(a: Side, b: Side) -> Floats:
    """Logarithms of the ratios b / a, pair by pair over whole A B B A quartets; as many as are nearly independent."""
    if not len(a.blocks) or len(a.blocks) != len(b.blocks):
        raise FleetError(f"{a.name} and {b.name} do not have the same blocks", code="bad-run")
    one, two = (np.log(units(side.samples, _joined(side.blocks))) for side in (a, b))
    pairs = two - one
    return _independent(MIN_PAIRS, lambda count: units(pairs, (), count))


def _independent(fewest: int, divide: Callable[[int], Floats]) -> Floats:
    """``divide(count)`` for the largest count that correlation leaves, but not below ``fewest``."""
    whole = divide(MAX_UNITS)
    r = correlation(whole)
    count = int(whole.size * (1 - r) / (1 + r))
    return whole if count >= whole.size else divide(max(count, fewest))


def _joined(blocks: Lengths) -> list[int]:
    """Two neighbouring blocks as one: of A B B A that is both of an arm's."""
    lengths = [int(length) for length in blocks]
    return [sum(lengths[i : i + 2]) for i in range(0, len(lengths), 2)]


def _mann_whitney(one: Floats, two: Floats) -> tuple[float, float]:
    from scipy import stats

    found = stats.mannwhitneyu(two, one, alternative="two-sided")
    return min(float(found.pvalue), 1.0), float(found.statistic) / (one.size * two.size)


def _wilcoxon(differences: Floats) -> tuple[float, float]:
    from scipy import stats

    effect = float(((differences > 0) + 0.5 * (differences == 0)).mean())
    if not differences.any():
        return 1.0, effect
    return min(float(stats.wilcoxon(differences).pvalue), 1.0), effect


def _mover(a: Side, b: Side) -> tuple[float, float, float]:
    """Logarithm of the ratio of medians b / a, and its interval."""
    (one, one_low, one_high), (two, two_low, two_high) = (
        (float(np.median(values)), *centre_interval(values, side.blocks))
        for side, values in ((side, np.log(side.samples)) for side in (a, b))
    )
    centre = two - one
    return (
        centre,
        centre - math.hypot(two - two_low, one_high - one),
        centre + math.hypot(two_high - two, one - one_low),
    )


def _words(found: Comparison) -> str:
    low, high = found.ratio_ci
    figures = (
        f"ratio of medians {found.ratio:.3f}, 95 % interval {low:.3f} to {high:.3f}, p {_p(found.p_value)},"
        f" A {found.effect:.2f}{', interleaved' if found.paired else ''}"
    )
    if found.verdict != "same":
        return f"{found.b} is {abs(found.ratio - 1):.1%} {found.verdict} than {found.a} ({figures})"
    if low >= 1 - THRESHOLD and high <= 1 + THRESHOLD:
        return f"{found.b} is as fast as {found.a} within {THRESHOLD:.0%} ({figures})"
    return f"{found.b} and {found.a} cannot be told apart ({figures})"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
