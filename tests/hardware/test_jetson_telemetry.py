"""The sensors of the Jetson that the tests run on: skipped, and counted, on any other machine."""

from __future__ import annotations

import time

import pytest

from targets.jetson import conditions, identity, power
from targets.jetson.sysfs import Roots
from targets.jetson.tegrastats import Tegrastats

pytestmark = pytest.mark.hardware


@pytest.fixture(scope="module", autouse=True)
def board() -> identity.Identity:
    found = identity.find()
    if not found.is_jetson:
        pytest.skip("this machine is no Jetson: its device tree names no Tegra chip")
    return found


def test_the_board_is_known(board: identity.Identity) -> None:
    assert board.l4t, "neither /etc/nv_tegra_release nor nvidia-l4t-core says which L4T this is"
    assert board.jetpack
    assert board.module, f"no module is known for what the device tree of {board.model!r} says"


def test_readings_are_there_and_make_sense() -> None:
    found = conditions.telemetry()
    assert 0 < found["temperature_c"] < 105
    assert found["gpu_mhz"] <= found["gpu_max_mhz"] if "gpu_mhz" in found else "gpu_max_mhz" in found
    assert 0.5 < found["power_w"] < 200
    assert found.get("throttled", 0.0) in (0.0, 1.0)


def test_a_reading_is_cheap() -> None:
    conditions.telemetry()
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        conditions.telemetry()
        seconds.append(time.perf_counter() - start)
    assert sorted(seconds)[10] < 5e-3


def test_the_power_mode_is_one_of_the_board_s() -> None:
    roots = Roots()
    mode = power.current(roots)
    assert mode.id in power.modes(roots).names
    assert mode.name == power.modes(roots).names[mode.id]


def test_tegrastats_says_what_sysfs_says() -> None:
    stats = Tegrastats()
    assert stats.there
    try:
        deadline = time.monotonic() + 10
        while (sample := stats.latest()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        said, read = sample.readings(), conditions.telemetry()
    finally:
        stats.close()
    common = [name for name in said if name in read]
    assert [name for name in common if name.startswith("temperature_")]
    assert [name for name in common if name.startswith("power_")]
    for name in common:
        if name.startswith("temperature_"):
            assert abs(said[name] - read[name]) < 10
