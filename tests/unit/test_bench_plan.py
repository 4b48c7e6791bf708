"""The bench plan: what it asks for, when it stops, and what it says it lacks. Driven without a clock."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from agent.protocol import BenchSpec
from targets import defaults
from targets.base import FleetError
from targets.bench import MAX_SAMPLES, MIN_BLOCKS, STEADY_BLOCKS, Block, Plan, queries_needed
from targets.statistics import REPEATABILITY

Runner = Callable[[Block], npt.NDArray[np.float64]]


def steady(latency: float, noise: float = 0.005) -> Runner:
    rng = np.random.default_rng(7)
    return lambda block: latency * (1 + noise * rng.standard_normal(block.queries))


def drive(plan: Plan, runners: list[Runner], limit: int = 10_000) -> list[Block]:
    done: list[Block] = []
    while (block := plan.next()) is not None:
        assert len(done) < limit, "the plan does not end"
        plan.feed(block, runners[block.arm](block))
        done.append(block)
    return done


@pytest.mark.parametrize(("percentile", "queries"), [(90, 64), (99, 662), (50, 11), (95, 130), (99.9, 6636)])
def test_queries_needed(percentile: float, queries: int) -> None:
    assert queries_needed(percentile) == queries


@given(st.floats(1, 99.9))
def test_queries_needed_is_the_smallest_that_binomial_allows(percentile: float) -> None:
    needed = queries_needed(percentile)
    slower = 1 - percentile / 100
    assert stats.binom.cdf(1, needed, slower) <= 0.01 * (1 + 1e-9)
    assert stats.binom.cdf(1, needed - 1, slower) > 0.01 * (1 - 1e-9)


@pytest.mark.parametrize("percentile", [0, 0.5, 99.95, 100, float("nan"), float("inf")])
def test_a_percentile_that_cannot_be_bounded_is_refused(percentile: float) -> None:
    with pytest.raises(FleetError) as error:
        queries_needed(percentile)
    assert error.value.code == "bad-spec"


@pytest.mark.parametrize(
    "spec",
    [
        {"min_duration": -1},
        {"min_duration": float("nan")},
        {"min_duration": 1e9},
        {"warmup_max": float("inf")},
        {"max_other_load": 1.5},
        {"min_queries": -1},
        {"min_queries": MAX_SAMPLES + 1},
    ],
)
def test_a_spec_that_cannot_be_carried_out_is_refused(spec: dict[str, float]) -> None:
    with pytest.raises(FleetError) as error:
        Plan(BenchSpec(**spec))
    assert error.value.code == "bad-spec"
    assert next(iter(spec)) in error.value.message


@pytest.mark.parametrize("arms", [0, 3])
def test_only_one_or_two_arms(arms: int) -> None:
    with pytest.raises(FleetError):
        Plan(BenchSpec(), arms)


def test_a_millisecond_model() -> None:
    plan = Plan(BenchSpec(min_duration=2.0))
    blocks = drive(plan, [steady(1e-3)])
    assert blocks[0] == Block(0, 1, "warmup")
    warm = [block for block in blocks if block.phase == "warmup"]
    measured = [block for block in blocks if block.phase == "measure"]
    assert sum(block.queries for block in warm) * 1e-3 == pytest.approx(defaults.BENCH_WARMUP_MIN, abs=0.1)
    assert len(measured) >= MIN_BLOCKS
    assert 2.0 <= sum(plan.samples()) / 1e3 <= 2.3
    assert plan.blocks() == [block.queries for block in measured]
    assert plan.shortfalls() == []
    assert plan.share == 1.0
    assert plan.throughput(batch=4) == pytest.approx(4000, rel=0.01)
    low, high = plan.statistics().ci50
    assert low < 1.0 < high
    assert high - low == pytest.approx(2 * REPEATABILITY, rel=0.01)


def test_a_slow_model_gets_as_many_queries_as_its_percentile_needs() -> None:
    plan = Plan(BenchSpec(min_duration=1.0, percentile=99, warmup_max=5))
    drive(plan, [steady(3.0)])
    assert len(plan.samples()) == 662
    assert plan.shortfalls() == []


def test_more_queries_are_taken_when_they_are_asked_for() -> None:
    plan = Plan(BenchSpec(min_duration=0.1, min_queries=5000))
    drive(plan, [steady(1e-3)])
    assert 5000 <= len(plan.samples()) <= 5500


def test_a_very_fast_model_stops_at_the_bound_of_a_message() -> None:
    for arms in (1, 2):
        plan = Plan(BenchSpec(min_duration=60.0), arms)
        drive(plan, [steady(1e-6)] * arms)
        assert sum(len(plan.samples(arm)) for arm in range(arms)) == MAX_SAMPLES
        assert plan.shortfalls() == []


def test_two_arms_are_interleaved_so_that_linear_drift_cancels() -> None:
    plan = Plan(BenchSpec(), arms=2)
    blocks = drive(plan, [steady(1e-3), steady(1.05e-3)])
    measured = [block for block in blocks if block.phase == "measure"]
    order = "".join("AB"[block.arm] for block in measured)
    assert order == "ABBA" * (len(order) // 4)
    assert plan.blocks(0) == plan.blocks(1)
    for arm in (0, 1):
        positions = [index for index, block in enumerate(measured) if block.arm == arm]
        assert np.mean(positions) == (len(measured) - 1) / 2
    warm = [block.arm for block in blocks if block.phase == "warmup"]
    assert [len(list(group)) for _, group in groupby(warm)] == [1] * len(warm)
    assert warm.count(0) == warm.count(1)


def test_warm_up_outlasts_what_is_cold() -> None:
    """Latency falls by half over the first 400 queries: none of them is measured."""
    count = 0

    def runner(block: Block) -> npt.NDArray[np.float64]:
        nonlocal count
        index = np.arange(count, count + block.queries)
        count += block.queries
        return 1e-3 * (1 + np.maximum(0, 1 - index / 400))

    plan = Plan(BenchSpec())
    drive(plan, [runner])
    assert plan.shortfalls() == []
    assert max(plan.samples()) < 1.03


def test_an_unsteady_warm_up_is_bounded_and_said() -> None:
    spent = 0.0

    def runner(block: Block) -> npt.NDArray[np.float64]:
        nonlocal spent
        latency = 1e-3 * 1.5**spent
        spent += latency * block.queries
        return np.full(block.queries, latency)

    plan = Plan(BenchSpec(warmup_max=1.0, min_duration=0.2))
    blocks = drive(plan, [runner])
    warm = sum(block.phase == "warmup" for block in blocks)
    assert warm >= STEADY_BLOCKS
    assert spent < 2.0
    (reason,) = plan.shortfalls()
    assert reason.startswith("warm-up did not become steady: after 1.0 s the median still moved")
    assert "(bound 2.0%)" in reason


def test_noise_alone_does_not_keep_a_warm_up_from_ending() -> None:
    plan = Plan(BenchSpec())
    drive(plan, [steady(1e-3, noise=0.15)])
    assert plan.shortfalls() == []


def test_stopped_early_says_how_many_are_missing() -> None:
    plan = Plan(BenchSpec(percentile=99, min_duration=0))
    runner = steady(0.1)
    while len(plan.samples()) < 40:
        block = plan.next()
        assert block is not None
        plan.feed(block, runner(block))
    assert plan.shortfalls() == ["too few queries: 40, p99 needs 662"]
    assert 0 < plan.share < 0.1


@pytest.mark.parametrize("bad", [[0.0], [-1e-3], [float("nan")], [float("inf")], [], [1e-3, 1e-3], [[1e-3]]])
def test_what_a_worker_cannot_have_measured_is_refused(bad: list[float]) -> None:
    plan = Plan(BenchSpec())
    block = plan.next()
    assert block is not None
    with pytest.raises(FleetError) as error:
        plan.feed(block, np.array(bad))
    assert error.value.code == "bad-samples"
    assert plan.next() is block


def test_only_the_block_that_was_asked_for_can_be_fed() -> None:
    with pytest.raises(ValueError, match="not the block"):
        Plan(BenchSpec()).feed(Block(0, 1, "measure"), np.array([1e-3]))


@settings(deadline=None, max_examples=60)
@given(
    latency=st.floats(1e-6, 20.0),
    noise=st.floats(0, 0.3),
    arms=st.integers(1, 2),
    duration=st.floats(0, 5),
    percentile=st.sampled_from([50.0, 90.0, 99.0]),
    jump=st.floats(0.2, 5.0),
)
def test_every_plan_ends_with_all_that_was_asked_for(
    latency: float, noise: float, arms: int, duration: float, percentile: float, jump: float
) -> None:
    rng = np.random.default_rng(1)
    blocks = 0

    def runner(block: Block) -> npt.NDArray[np.float64]:
        nonlocal blocks
        blocks += 1
        level = latency * (jump if blocks > 15 else 1)
        return level * np.exp(noise * rng.standard_normal(block.queries))

    plan = Plan(BenchSpec(min_duration=duration, percentile=percentile, warmup_max=2.0), arms)
    share = 0.0
    while (block := plan.next()) is not None:
        plan.feed(block, runner(block))
        assert share <= plan.share <= 1.0
        share = plan.share
        assert blocks < 20_000
    for arm in range(arms):
        taken = plan.samples(arm)
        assert len(taken) >= queries_needed(percentile)
        assert sum(taken) / 1e3 >= duration * (1 - 1e-9) or len(taken) >= MAX_SAMPLES // arms
        assert len(plan.blocks(arm)) >= MIN_BLOCKS
        assert len(taken) <= MAX_SAMPLES // arms * (1 + 2 / MIN_BLOCKS)  # the last round is a whole one
    assert plan.share == 1.0
