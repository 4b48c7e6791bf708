"""Plans beside the usual one: the notebooks' protocol, and engines whose calls each cost a start."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.protocol import BenchSpec
from targets.base import FleetError
from targets.bench import (
    BLOCKED_BLOCKS,
    BLOCKED_LONGEST,
    BLOCKED_SECONDS,
    MAX_SAMPLES,
    MIN_BLOCKS,
    NOTEBOOK_RUNS,
    NOTEBOOK_WARMUP,
    STEADY_BLOCKS,
    Block,
    NotebookPlan,
    Plan,
    plan_for,
    queries_needed,
)

Floats = npt.NDArray[np.float64]
Wants = Callable[[float], int]
NOTEBOOK = BenchSpec(protocol="notebook")


def drive(
    plan: Plan | NotebookPlan, latency: Callable[[Block], Floats], wants: Wants = lambda seconds: 1
) -> list[Block]:
    done: list[Block] = []
    while (block := plan.next()) is not None:
        assert len(done) < 5000, "the plan does not end"
        seconds = latency(block)
        plan.feed(block, seconds, wants(float(np.median(seconds))))
        done.append(block)
    return done


def steady(latency: float, noise: float = 0.005) -> Callable[[Block], Floats]:
    rng = np.random.default_rng(11)
    return lambda block: latency * np.exp(noise * rng.standard_normal(block.queries))


def test_the_spec_chooses_the_protocol() -> None:
    assert isinstance(plan_for(BenchSpec()), Plan)
    assert isinstance(plan_for(NOTEBOOK), NotebookPlan)
    with pytest.raises(FleetError) as refused:
        plan_for(NOTEBOOK, arms=2)
    assert refused.value.code == "bad-spec"


def test_a_notebook_warms_up_with_fifty_and_measures_a_hundred() -> None:
    plan = plan_for(NOTEBOOK)
    assert plan.share == 0.0
    blocks = drive(plan, steady(0.046))
    assert [(block.phase, block.queries) for block in blocks[:2]] == [("warmup", 1), ("warmup", NOTEBOOK_WARMUP)]
    assert [block.queries for block in blocks[2:]] == [10] * 10
    assert {block.phase for block in blocks[2:]} == {"measure"} and {block.clock for block in blocks} == {"host"}
    assert blocks[1].seconds == pytest.approx(NOTEBOOK_WARMUP * 0.046, rel=0.05)
    assert len(plan.samples()) == NOTEBOOK_RUNS and plan.shortfalls() == [] and plan.share == 1.0
    assert plan.statistics().mean == pytest.approx(46, rel=0.01)
    assert plan.throughput(batch=128) == pytest.approx(128 / 0.046, rel=0.01)


@settings(deadline=None)
@given(latency=st.floats(1e-6, 100.0), noise=st.floats(0, 1.0), least=st.integers(-5, 10**9))
def test_every_notebook_plan_measures_exactly_a_hundred(latency: float, noise: float, least: int) -> None:
    plan = NotebookPlan(NOTEBOOK)
    blocks = drive(plan, steady(latency, noise), lambda seconds: least)
    warm = [block.queries for block in blocks if block.phase == "warmup"]
    assert warm == [1, NOTEBOOK_WARMUP]
    assert sum(block.queries for block in blocks if block.phase == "measure") == NOTEBOOK_RUNS == len(plan.samples())
    assert sum(plan.blocks()) == NOTEBOOK_RUNS and plan.shortfalls() == []


def test_a_notebook_that_ended_early_says_so() -> None:
    plan = NotebookPlan(NOTEBOOK)
    runner = steady(0.1)
    while len(plan.samples()) < 30:
        block = plan.next()
        assert block is not None
        plan.feed(block, runner(block))
    assert plan.shortfalls() == ["too few queries: 30, the notebook's are 100"]
    assert plan.share == pytest.approx(0.3)


def test_few_starts_serve_a_whole_run() -> None:
    """An engine that wants two seconds of queries from each of its starts, of a network that takes 5 ms."""
    plan = Plan(BenchSpec(min_duration=2.0))
    blocks = drive(plan, steady(5e-3), lambda seconds: round(2.0 / seconds))
    assert [block.queries for block in blocks[:1]] == [1]
    assert all(block.queries >= 390 for block in blocks[1:])
    measured = [block for block in blocks if block.phase == "measure"]
    assert len(measured) == BLOCKED_BLOCKS
    assert len(blocks) <= BLOCKED_BLOCKS + 3
    assert plan.shortfalls() == [] and plan.blocks() == [block.queries for block in measured]


def test_a_slow_engine_with_starts_shows_that_it_moves() -> None:
    plan = Plan(BenchSpec(min_duration=2.0))
    blocks = drive(plan, steady(9.0), lambda seconds: 2)
    assert max(block.seconds for block in blocks) <= BLOCKED_LONGEST * 1.1
    assert queries_needed(90) <= len(plan.samples()) <= queries_needed(90) + 14


def test_without_a_wish_blocks_are_as_before() -> None:
    plan = Plan(BenchSpec(min_duration=2.0))
    blocks = drive(plan, steady(5e-3))
    assert sum(block.phase == "measure" for block in blocks) >= MIN_BLOCKS
    assert max(block.queries for block in blocks) == pytest.approx(2.0 / MIN_BLOCKS / 5e-3, abs=2)


def test_two_arms_with_starts_keep_their_pairs() -> None:
    plan = Plan(BenchSpec(min_duration=1.0), arms=2)
    blocks = drive(plan, steady(5e-3), lambda seconds: round(0.5 / seconds))
    order = "".join("AB"[block.arm] for block in blocks if block.phase == "measure")
    assert order == "ABBA" * (len(order) // 4) and len(order) == 2 * MIN_BLOCKS
    assert plan.blocks(0) == plan.blocks(1) and min(plan.blocks(0)) >= 95


def test_a_warm_up_within_one_start_is_judged_in_parts() -> None:
    """The first block of a cold engine falls by half: it does not pass for steady, the next one does."""
    starts = 0

    def runner(block: Block) -> Floats:
        nonlocal starts
        starts += 1
        ramp = np.linspace(2.0, 1.0, block.queries) if starts == 2 else np.ones(block.queries)
        return 5e-3 * ramp

    plan = Plan(BenchSpec(min_duration=1.0))
    blocks = drive(plan, runner, lambda seconds: 400)
    assert sum(block.phase == "warmup" for block in blocks) > 2
    assert plan.shortfalls() == [] and max(plan.samples()) == pytest.approx(5.0)


@settings(deadline=None, max_examples=80)
@given(
    latency=st.floats(1e-5, 20.0),
    noise=st.floats(0, 0.2),
    arms=st.integers(1, 2),
    duration=st.floats(0, 5),
    wanted=st.floats(0, 1e6),
)
@example(latency=1e-5, noise=0.18436462340462595, arms=1, duration=4.963443887750512, wanted=0.0)
def test_time_is_bounded_whatever_an_engine_wants(
    latency: float, noise: float, arms: int, duration: float, wanted: float
) -> None:
    plan = Plan(BenchSpec(min_duration=duration, warmup_max=2.0), arms)
    blocks = drive(plan, steady(latency, noise), lambda seconds: int(wanted / seconds))
    fewest = queries_needed(90)
    for arm in range(arms):
        taken = plan.samples(arm)
        assert len(taken) >= fewest and len(plan.blocks(arm)) >= BLOCKED_BLOCKS
        whole = max(duration, fewest * latency)
        bound = max(whole, MIN_BLOCKS * BLOCKED_SECONDS) * 2 * np.exp(4 * noise) + 2 * MIN_BLOCKS * latency
        assert sum(taken) / 1e3 <= bound
        assert len(taken) <= MAX_SAMPLES
        warm = [block for block in blocks if block.phase == "warmup" and block.arm == arm]
        assert len(warm) <= max(STEADY_BLOCKS, 100)
    for block in blocks[arms:]:
        assert block.seconds == pytest.approx(block.queries * latency, rel=np.expm1(6 * noise) + 1e-6)
