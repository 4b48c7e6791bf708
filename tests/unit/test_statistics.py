"""Statistics of latencies; above all, whether the interval of the median keeps its promise under correlated noise."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from targets.statistics import (
    MAX_UNITS,
    REPEATABILITY,
    centre_interval,
    correlation,
    median_interval,
    student95,
    summarise,
    units,
)

Floats = npt.NDArray[np.float64]
BLOCKS, QUERIES = 20, 60


def noisy_run(rng: np.random.Generator, r: float, drift: float, noise: float = 0.02) -> Floats:
    """Samples around a median of 1: AR(1) noise between blocks (standard deviation ``drift``), white noise within."""
    steps = rng.standard_normal(BLOCKS)
    level = [steps[0]]
    for step in steps[1:]:
        level.append(r * level[-1] + math.sqrt(1 - r * r) * step)
    samples: Floats = (1 + drift * np.array(level)[:, None] + noise * rng.standard_normal((BLOCKS, QUERIES))).ravel()
    return samples


@pytest.mark.parametrize("drift", [0.0, 0.005, 0.02])
@pytest.mark.parametrize(("r", "promised"), [(0.0, 0.95), (0.3, 0.95), (0.6, 0.93), (0.8, 0.85)])
def test_the_interval_covers_the_median(r: float, promised: float, drift: float) -> None:
    rng = np.random.default_rng(11)
    runs = 400
    covered = 0
    for _ in range(runs):
        low, high = median_interval(noisy_run(rng, r, drift), [QUERIES] * BLOCKS)
        covered += low <= 1 <= high
    # Three standard errors of the simulation below what the docstring promises.
    assert covered / runs >= promised - 3 * math.sqrt(promised * (1 - promised) / runs)


@pytest.mark.parametrize("r", [0.0, 0.6])
def test_two_runs_of_the_same_agree(r: float) -> None:
    rng = np.random.default_rng(5)
    pairs = [[median_interval(noisy_run(rng, r, 0.01), [QUERIES] * BLOCKS) for _ in range(2)] for _ in range(200)]
    agree = sum(a[0] <= b[1] and b[0] <= a[1] for a, b in pairs)
    assert agree / len(pairs) >= 0.97


def test_the_interval_is_not_wide_for_nothing() -> None:
    """On a quiet machine it is within a factor of two of what independent normal samples allow."""
    rng = np.random.default_rng(2)
    widths = [np.ptp(centre_interval(noisy_run(rng, 0, 0), [QUERIES] * BLOCKS)) for _ in range(100)]
    ideal = 2 * 1.96 * 1.2533 * 0.02 / math.sqrt(BLOCKS * QUERIES)
    assert np.median(widths) < 2 * ideal


def test_no_interval_claims_more_than_runs_repeat() -> None:
    rng = np.random.default_rng(3)
    samples = noisy_run(rng, 0, 0)
    low, high = median_interval(samples, [QUERIES] * BLOCKS)
    assert (high - low) / np.median(samples) == pytest.approx(2 * REPEATABILITY, rel=0.01)


def test_a_burst_of_other_load_does_not_decide() -> None:
    samples = noisy_run(np.random.default_rng(3), 0, 0.002)
    samples[: 2 * QUERIES] *= 2
    low, high = median_interval(samples, [QUERIES] * BLOCKS)
    assert low <= 1.001
    assert high < 1.05


def test_linear_drift_widens_the_interval() -> None:
    samples = np.linspace(1.0, 1.1, BLOCKS * QUERIES)
    low, high = median_interval(samples, [QUERIES] * BLOCKS)
    assert high - low > 0.05


@given(hnp.arrays(np.float64, st.integers(1, 300), elements=st.floats(1e-3, 1e6)))
def test_order_of_the_figures(samples: Floats) -> None:
    found = summarise(samples)
    assert found.min <= found.p50 <= found.p90 <= found.p99 <= found.max
    assert found.ci50[0] <= found.p50 <= found.ci50[1]
    assert found.min <= found.mean * (1 + 1e-9)
    assert found.mean <= found.max * (1 + 1e-9)
    assert found.p90 in samples
    assert found.p99 in samples
    assert found.std >= 0


def test_figures() -> None:
    found = summarise([float(x) for x in range(1, 101)])
    assert (found.min, found.p50, found.p90, found.p99, found.max) == (1, 50.5, 90, 99, 100)
    assert found.mean == 50.5
    assert found.std == pytest.approx(29.011, abs=1e-3)


def test_one_sample_and_equal_samples() -> None:
    assert summarise([3.0]).ci50 == (3.0, 3.0)
    assert summarise([3.0]).std == 0
    assert summarise([2.0] * 100, [50, 50]).ci50 == (2.0, 2.0)


def test_nothing_has_no_statistics() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarise([])


@pytest.mark.parametrize("blocks", [[3], [5], [2, 0, 2], [6, -2]])
def test_blocks_must_fit(blocks: list[int]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        summarise([1.0, 2.0, 3.0, 4.0], blocks)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(1, 30))
def test_units_are_medians_of_whole_blocks_in_order(blocks: list[int], count: int) -> None:
    values = np.repeat(np.arange(len(blocks), dtype=np.float64), blocks)
    found = units(values, blocks, count)
    assert found.size == min(count, len(blocks))
    assert (np.diff(found) > 0).all()
    assert units(values, blocks).size <= MAX_UNITS


@pytest.mark.parametrize("freedom", [*range(1, 31), 4.5, 11.9, 50.0, 1000.0])
def test_student(freedom: float) -> None:
    exact = stats.t.ppf(0.975, freedom)
    assert exact - 1e-4 <= student95(freedom)
    # Fractional degrees of freedom are rounded down.
    assert student95(freedom) <= stats.t.ppf(0.975, int(freedom)) + 0.01


def test_correlation_of_short_series_is_not_biased_away() -> None:
    rng = np.random.default_rng(0)

    def series(r: float) -> Floats:
        values = [rng.standard_normal()]
        for _ in range(19):
            values.append(r * values[-1] + math.sqrt(1 - r * r) * rng.standard_normal())
        return np.array(values)

    for r in (0.3, 0.6):
        assert np.mean([correlation(series(r)) for _ in range(500)]) == pytest.approx(r, abs=0.1)
    assert correlation(np.ones(20)) == 0
    assert correlation(np.arange(3.0)) == 0
    assert correlation(np.arange(1000.0)) == 0.9
