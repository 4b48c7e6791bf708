"""Thermal soak and energy of a series of readings."""

from __future__ import annotations

import pytest

from targets.series import conditions, power_above_idle, thermal


def heating(seconds: int, start: float, per_second: float) -> list[tuple[float, dict[str, float]]]:
    return [(float(at), {"temperature_c": start + per_second * at}) for at in range(seconds + 1)]


def test_a_board_is_soaked_when_a_minute_moves_it_by_less_than_a_kelvin() -> None:
    assert thermal(heating(120, 60, 0.01)) == "soaked"
    assert thermal(heating(120, 60, 0.02)) == "not soaked"
    # Only the last minute counts.
    assert thermal([*heating(60, 40, 0.5), *((60.0 + at, {"temperature_c": 70.0}) for at in range(1, 62))]) == "soaked"


def test_a_short_series_shows_no_soak() -> None:
    assert thermal(heating(30, 60, 0.0)) == "not soaked"
    assert thermal([(0.0, {"temperature_c": 60.0}), (60.0, {"temperature_c": 60.0})]) == "not soaked"


def test_without_a_temperature_nothing_is_said() -> None:
    assert thermal([]) == ""
    assert thermal([(float(at), {"power_w": 5.0}) for at in range(100)]) == ""


def test_readings_before_a_pause_show_no_soak() -> None:
    early = [(float(at), {"temperature_c": 60.0}) for at in range(10)]
    late = [(3600.0 + at, {"temperature_c": 60.0}) for at in range(10)]
    assert thermal([*early, *late]) == "not soaked"


def test_power_above_idle_is_the_integral_s_mean() -> None:
    steady = [(float(at), {"power_w": 12.0}) for at in range(11)]
    assert power_above_idle(steady, 7.0) == pytest.approx(5.0)
    ramp = [(float(at), {"power_w": float(at)}) for at in range(11)]
    assert power_above_idle(ramp, 0.0) == pytest.approx(5.0)
    # Readings that are missing are bridged.
    assert power_above_idle([point for point in ramp if point[0] not in (3, 4)], 0.0) == pytest.approx(5.0)


def test_a_run_that_is_too_short_for_the_sensor_has_no_energy() -> None:
    assert power_above_idle([(float(at), {"power_w": 12.0}) for at in range(5)], 7.0) is None
    assert power_above_idle([(float(at), {"temperature_c": 12.0}) for at in range(50)], 7.0) is None
    assert power_above_idle([], 7.0) is None


def test_energy_of_an_inference() -> None:
    series = [(float(at), {"power_w": 12.0, "temperature_c": 60.0}) for at in range(11)]
    assert conditions(series, 7.0, 250.0) == pytest.approx(
        {"thermal": "not soaked", "idle_power_w": 7.0, "power_above_idle_w": 5.0, "energy_per_item_j": 0.02}
    )
    assert conditions(series, None, 250.0) == {"thermal": "not soaked"}
    assert conditions([], 7.0, 250.0) == {}
