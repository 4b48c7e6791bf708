"""Verdicts: each condition that spoils a run is named with its figure and its bound, and nothing else is."""

from __future__ import annotations

import pytest

from agent.protocol import BenchSpec
from targets.verdict import conditions, judge

GOOD = conditions(
    {"temperature_c": 45.0, "governor": "performance", "throttle_events": 7.0, "cpu_max_mhz": 1800.0},
    [{"temperature_c": 50.0, "cpu_mhz": 1800.0}, {"temperature_c": 55.0, "cpu_mhz": 1790.0}],
    {"temperature_c": 56.0, "governor": "performance", "throttle_events": 7.0, "cpu_max_mhz": 1800.0},
    other_load=0.04,
)


def test_conditions_are_flat() -> None:
    assert GOOD["before.temperature_c"] == 45.0
    assert GOOD["during.temperature_c"] == 52.5
    assert (GOOD["during.temperature_c_min"], GOOD["during.temperature_c_max"]) == (50.0, 55.0)
    assert GOOD["during.other_load"] == 0.04
    assert GOOD["after.governor"] == "performance"
    assert all(isinstance(value, (float, str)) for value in GOOD.values())


def test_a_reading_that_comes_and_goes_is_averaged_over_when_it_was_there() -> None:
    found = conditions({}, [{"power_w": 4.0}, {}, {"power_w": 6.0}], {})
    assert found == {"during.power_w": 5.0, "during.power_w_min": 4.0, "during.power_w_max": 6.0}


def test_a_good_run_and_a_board_that_tells_nothing_are_valid() -> None:
    assert judge(BenchSpec(), [], GOOD) == ("VALID", "")
    assert judge(BenchSpec(), [], {}) == ("VALID", "")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"during.other_load": 0.41}, "other processes used 41% of the CPU (bound 25%)"),
        ({"after.throttle_events": 10.0}, "the board was throttled 3 times (bound 0)"),
        ({"during.throttled_max": 1.0}, "the board was throttled while it was measured (bound: never)"),
        ({"after.throttled": 1.0}, "the board was throttled while it was measured (bound: never)"),
        ({"after.governor": "powersave"}, "the clock governor changed from performance to powersave"),
        ({"after.cpu_max_mhz": 1200.0}, "the highest allowed clock changed from 1800 to 1200 MHz"),
        ({"during.cpu_mhz_min": 1500.0}, "the clock fell by 17%, from 1800 to 1500 MHz (bound 10%)"),
        (
            {"during.temperature_c_max": 62.5},
            "the temperature moved by 12.5 K, between 50.0 and 62.5 °C (bound 10 K)",
        ),
        (
            {"before.temperature_limit_c": 55.0},
            "the temperature reached 55.0 °C, where this board slows down (bound 55.0 °C)",
        ),
        (
            {"before.power_mode": "MAXN", "after.power_mode": "10W"},
            "the power mode changed from MAXN to 10W",
        ),
        ({"before.power_mode_id": 0.0, "after.power_mode_id": 2.0}, "the power mode changed from 0 to 2"),
        (
            {"during.gpu_mhz_min": 612.0, "during.gpu_mhz_max": 1020.0},
            "the GPU's clock fell by 40%, from 1020 to 612 MHz (bound 10%)",
        ),
        (
            {"before.gpu_max_mhz": 1020.0, "after.gpu_max_mhz": 612.0},
            "the highest allowed GPU's clock changed from 1020 to 612 MHz",
        ),
    ],
)
def test_what_spoils_a_run_is_named_with_figure_and_bound(changed: dict[str, float | str], reason: str) -> None:
    assert judge(BenchSpec(), [], GOOD | changed) == ("INVALID", reason)


def test_a_gpu_s_clock_may_move_a_little() -> None:
    assert judge(BenchSpec(), [], GOOD | {"during.gpu_mhz_min": 950.0, "during.gpu_mhz_max": 1020.0})[0] == "VALID"


def test_the_bound_of_other_load_is_the_spec_s() -> None:
    assert judge(BenchSpec(max_other_load=0.03), [], GOOD)[0] == "INVALID"
    assert judge(BenchSpec(max_other_load=0.04), [], GOOD)[0] == "VALID"


def test_all_reasons_are_given() -> None:
    verdict, reason = judge(BenchSpec(), ["too few queries: 3, p90 needs 64"], GOOD | {"during.other_load": 1.0})
    assert verdict == "INVALID"
    assert reason == "too few queries: 3, p90 needs 64; other processes used 100% of the CPU (bound 25%)"
