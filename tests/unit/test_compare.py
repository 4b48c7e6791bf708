"""Comparing runs: equal ones are not told apart, a 5 % slower one is, and pairs see through drift."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from agent.protocol import BenchSpec, LatencyStats, RunResult
from controller.compare import ALPHA, THRESHOLD, Side, compare, compare_runs
from controller.results import Results, database_url
from targets.base import FleetError
from targets.bench import Plan
from targets.statistics import summarise

Floats = npt.NDArray[np.float64]
BLOCKS, QUERIES = 20, 60


def noisy(rng: np.random.Generator, r: float = 0.0, drift: float = 0.005, blocks: int = BLOCKS) -> Floats:
    """Levels of blocks around 1, AR(1) with standard deviation ``drift``."""
    level = [rng.standard_normal()]
    while len(level) < blocks:
        level.append(r * level[-1] + math.sqrt(1 - r * r) * rng.standard_normal())
    return 1 + drift * np.array(level)


def side(name: str, levels: Floats, rng: np.random.Generator, factor: float = 1.0) -> Side:
    samples = factor * levels[:, None] * (1 + 0.02 * rng.standard_normal((levels.size, QUERIES)))
    return Side(name, samples.ravel(), [QUERIES] * levels.size)


@pytest.mark.parametrize("drift", [0.002, 0.01, 0.03])
@pytest.mark.parametrize("r", [0.0, 0.3, 0.6])
def test_equal_runs_are_not_told_apart(r: float, drift: float) -> None:
    rng = np.random.default_rng(9)
    runs = 150
    found = [compare(side("a", noisy(rng, r, drift), rng), side("b", noisy(rng, r, drift), rng)) for _ in range(runs)]
    assert sum(one.verdict != "same" for one in found) / runs <= 0.04
    assert sum(one.ratio_ci[0] <= 1 <= one.ratio_ci[1] for one in found) / runs >= 0.91


@pytest.mark.parametrize("r", [0.0, 0.3, 0.6])
def test_five_per_cent_are_told_apart(r: float) -> None:
    rng = np.random.default_rng(10)
    for _ in range(40):
        a = side("a", noisy(rng, r), rng)
        slow, fast = (side("b", noisy(rng, r), rng, factor) for factor in (1.05, 1 / 1.05))
        slower, faster = compare(a, slow), compare(a, fast)
        assert (slower.verdict, faster.verdict) == ("slower", "faster")
        assert slower.ratio == pytest.approx(1.05, abs=0.02)
        assert slower.ratio_ci[0] < slower.ratio < slower.ratio_ci[1]
        assert slower.p_value <= ALPHA
        assert slower.effect > 0.9
        assert faster.effect < 0.1


def test_a_difference_that_is_certain_but_small_is_not_one() -> None:
    rng = np.random.default_rng(4)
    levels = noisy(rng, 0, 1e-4)
    found = compare(side("a", levels, rng), side("b", levels, rng, 1 + THRESHOLD / 2))
    assert found.p_value <= ALPHA
    assert found.ratio_ci[0] > 1
    assert found.verdict == "same"
    assert found.words.startswith("b is as fast as a within 2%")


def test_pairs_see_through_drift_that_hides_the_difference_from_runs_apart() -> None:
    """Both arms drift by 40 % together; the second is 5 % slower all the time."""
    rng = np.random.default_rng(6)
    blocks = 40
    time = np.linspace(0, 0.4, 2 * blocks)
    arm = np.array([0, 1, 1, 0] * (blocks // 2))
    a, b = (side(name, 1 + time[arm == index], rng, factor) for name, index, factor in (("a", 0, 1), ("b", 1, 1.05)))
    assert compare(a, b).verdict == "same"
    paired = compare(a, b, paired=True)
    assert paired.verdict == "slower"
    assert paired.paired
    assert paired.ratio == pytest.approx(1.05, abs=0.01)
    assert "interleaved" in paired.words
    # Whole A B B A quartets: the drift within a pair does not count for either.
    same = compare(a, Side("b", np.asarray(b.samples) / 1.05, b.blocks), paired=True)
    assert same.verdict == "same"
    assert same.ratio == pytest.approx(1.0, abs=0.005)


def test_pairs_of_a_plan_are_told_apart() -> None:
    rng = np.random.default_rng(8)
    plan = Plan(BenchSpec(min_duration=1.0), arms=2)
    elapsed = 0.0
    while (block := plan.next()) is not None:
        latency = 1e-3 * (1.05 if block.arm else 1.0) * (1 + 0.1 * elapsed)
        seconds = latency * (1 + 0.02 * rng.standard_normal(block.queries))
        elapsed += float(seconds.sum())
        plan.feed(block, seconds)
    a, b = (Side(str(arm), plan.samples(arm), plan.blocks(arm)) for arm in (0, 1))
    assert compare(a, b, paired=True).verdict == "slower"


def test_the_same_samples_are_the_same() -> None:
    a = side("a", noisy(np.random.default_rng(1)), np.random.default_rng(2))
    for paired in (False, True):
        found = compare(a, dataclasses.replace(a, name="b"), paired=paired)
        assert (found.verdict, found.ratio, found.effect, found.p_value) == ("same", 1.0, 0.5, 1.0)


def test_few_samples_prove_nothing() -> None:
    found = compare(Side("a", [1.0, 1.0, 1.0]), Side("b", [2.0, 2.0, 2.0]))
    assert found.verdict == "same"
    assert found.units == (3, 3)
    assert "cannot be told apart" in found.words


def test_what_cannot_be_compared() -> None:
    a = Side("a", [1.0, 2.0], [1, 1])
    for b, paired in ((Side("b", []), False), (Side("b", [1.0], [1]), True), (Side("b", [1.0, 2.0]), True)):
        with pytest.raises(FleetError) as error:
            compare(a, b, paired=paired)
        assert error.value.code == "bad-run"
        assert "b" in error.value.message


@pytest.fixture
def results(tmp_path: Path) -> Iterator[Results]:
    opened = Results(database_url(tmp_path))
    yield opened
    opened.close()


def store(results: Results, name: str, samples: Side, **changes: object) -> None:
    fields: dict[str, object] = {
        "run": name,
        "device": "board",
        "target": "x86",
        "simulated": False,
        "model": "net",
        "bundle": "0" * 64,
        "engine": "time_evaluator",
        "batch": 1,
        "started_at": 0.0,
        "verdict": "VALID",
        "latency_ms": LatencyStats(**dataclasses.asdict(summarise(samples.samples, samples.blocks))),
        "throughput": 1.0,
        "samples": list(map(float, samples.samples)),
        "blocks": list(samples.blocks),
        "spec": BenchSpec(),
    }
    results.add(RunResult(**(fields | changes)))  # type: ignore[arg-type]


def test_stored_runs_are_compared_with_their_caveats(results: Results) -> None:
    rng = np.random.default_rng(12)
    store(results, "first", side("", noisy(rng), rng))
    store(results, "second", side("", noisy(rng), rng, 1.05), device="other", verdict="INVALID", reason="too hot")
    found = compare_runs(results, "fi", "se")
    assert (found.a, found.b, found.verdict, found.paired) == ("first", "second", "slower", False)
    assert found.caveats == ["second is INVALID: too hot", "device: board against other"]
    assert found.words.startswith("second is ")
    assert "slower than first" in found.words


def test_interleaved_runs_are_compared_as_pairs(results: Results) -> None:
    rng = np.random.default_rng(13)
    drift = np.linspace(1, 1.5, 20)
    store(results, "a1", side("", drift, rng))
    store(results, "b1", side("", drift, rng, 1.05), interleaved_with="a1")
    assert compare_runs(results, "a1", "b1").paired
    assert compare_runs(results, "b1", "a1").verdict == "faster"


def test_a_run_is_not_compared_with_itself(results: Results) -> None:
    rng = np.random.default_rng(14)
    store(results, "only", side("", noisy(rng), rng))
    with pytest.raises(FleetError) as error:
        compare_runs(results, "on", "only")
    assert error.value.code == "same-run"
