"""Canaries, the bound on failures, and when a device counts as gone: decisions without any device."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.liveness import Backoff, Liveness
from controller.rollout import PARALLEL, rollout
from targets.defaults import OFFLINE_AFTER, RECONNECT_CAP, RECONNECT_FIRST, SUSPECT_AFTER

SKIPPED = "not touched"


class Devices:
    """Numbers, of which some fail; notes how many were under way at once."""

    def __init__(self, bad: Collection[int], seed: int = 0) -> None:
        self.bad, self.touched = bad, list[int]()
        self.running = self.most = 0
        self._random = random.Random(seed)

    async def act(self, item: int) -> str:
        self.touched.append(item)
        self.running += 1
        self.most = max(self.most, self.running)
        for _ in range(self._random.randrange(1, 4)):
            await asyncio.sleep(0)
        self.running -= 1
        return "bad" if item in self.bad else "good"

    def roll(self, count: int, canary: int = 0, max_failures: int | None = None) -> list[str]:
        return asyncio.run(
            rollout(
                range(count),
                self.act,
                failed=lambda r: r == "bad",
                skip=lambda item, why: why,
                canary=canary,
                max_failures=max_failures,
            )
        )


def test_all_at_once_and_in_order() -> None:
    devices = Devices({1})
    assert devices.roll(4) == ["good", "bad", "good", "good"]
    assert devices.most == 4


def test_never_too_many_at_once() -> None:
    devices = Devices(set())
    assert devices.roll(3 * PARALLEL) == ["good"] * (3 * PARALLEL)
    assert devices.most <= PARALLEL


def test_canaries_that_do_well_let_the_rest_go() -> None:
    devices = Devices({4})
    assert devices.roll(5, canary=2) == ["good", "good", "good", "good", "bad"]
    assert set(devices.touched[:2]) == {0, 1}


def test_a_bad_canary_stops_everything() -> None:
    devices = Devices({1})
    found = devices.roll(4, canary=2)
    assert found[:2] == ["good", "bad"]
    assert all(why == "not touched: 1 of the 2 canary devices did not do well" for why in found[2:])
    assert set(devices.touched) == {0, 1}


def test_as_many_canaries_as_devices_is_no_canary() -> None:
    assert Devices({0}).roll(2, canary=2) == ["bad", "good"]


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(0, 12),
    bad=st.sets(st.integers(0, 11)),
    canary=st.integers(0, 4),
    most=st.none() | st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_promises(count: int, bad: set[int], canary: int, most: int | None, seed: int) -> None:
    devices = Devices(bad, seed)
    found = devices.roll(count, canary, most)
    assert len(found) == count
    assert len(devices.touched) == len(set(devices.touched))
    for item, result in enumerate(found):
        expected = ("bad" if item in bad else "good") if item in devices.touched else SKIPPED
        assert result.startswith(expected)
    failures = found.count("bad")
    if most is not None:
        assert failures <= most
        # Nothing is left out without need.
        if len(devices.touched) < count:
            assert failures == most or any(item in bad for item in range(canary))
    elif len(devices.touched) < count:
        assert any(item in bad for item in range(canary))


def test_cancelling_waits_for_what_is_under_way() -> None:
    ended: list[int] = []

    async def act(item: int) -> str:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.append(item)
        return "good"

    async def work() -> None:
        rolling = asyncio.ensure_future(
            rollout(range(3), act, failed=lambda r: False, skip=lambda item, why: why, max_failures=2)
        )
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        rolling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await rolling

    asyncio.run(work())
    assert sorted(ended) == [0, 1]


# --- Liveness -----------------------------------------------------------------------------------


@given(st.floats(0, 1e6), st.floats(0, 100))
def test_liveness(heard: float, silent: float) -> None:
    state = Liveness(heard).state(heard + silent)
    if silent < SUSPECT_AFTER * 0.999:
        assert state == "online"
    elif SUSPECT_AFTER * 1.001 < silent < OFFLINE_AFTER * 0.999:
        assert state == "suspect"
    elif silent > OFFLINE_AFTER * 1.001:
        assert state == "offline"


def test_backoff_grows_to_its_cap_and_starts_again() -> None:
    longest = Backoff(uniform=lambda low, high: high)
    waits = [longest.next() for _ in range(12)]
    assert waits[0] == RECONNECT_FIRST and waits[-1] == RECONNECT_CAP
    assert waits == sorted(waits)
    longest.reset()
    assert longest.next() == RECONNECT_FIRST


@given(st.integers(0, 2**32))
def test_backoff_is_jittered_within_bounds(seed: int) -> None:
    backoff = Backoff(uniform=random.Random(seed).uniform)
    for n in range(20):
        bound = min(RECONNECT_FIRST * 2**n, RECONNECT_CAP)
        assert bound / 2 <= backoff.next() <= bound
