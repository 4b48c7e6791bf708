"""What agents read on boards of all kinds: recorded trees in, figures out; what is not there is absent, never zero."""

from __future__ import annotations

from pathlib import Path

import pytest
from board_trees import (
    AGX_ORIN_JETPACK_7,
    ATLAS_200I_DK_A2,
    JETSONS,
    ORIN_NANO,
    PYNQ_Z1,
    RASPBERRY_PI_4,
    RASPBERRY_PI_5,
    THOR,
    ULTRA96_V2,
    ULTRASCALE_MAINLINE,
    Files,
    hwmon,
    write,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.telemetry import Telemetry
from targets.sensors import Rails, Throttling, number, text

#: Of every machine, whatever its sensors.
ALWAYS = {"memory_bytes", "memory_percent"}


def read(root: Path, board: Files) -> dict[str, float]:
    write(root, board)
    found = Telemetry(root / "sys", root / "proc").read()
    return {name: value for name, value in found.items() if name not in ALWAYS}


def test_a_raspberry_pi_4(tmp_path: Path) -> None:
    assert read(tmp_path, RASPBERRY_PI_4) == {
        "temperature_c": 48.686,
        "cpu_mhz": 1500,
        "cpu_max_mhz": 1800,
        "throttled": 1,
    }


def test_a_raspberry_pi_5(tmp_path: Path) -> None:
    # Its PMIC is behind the firmware's mailbox: no power. The active trip starts the fan, it slows nothing down.
    found = read(tmp_path, RASPBERRY_PI_5)
    assert found == {"temperature_c": 56.15, "cpu_mhz": 2400, "cpu_max_mhz": 2400, "throttled": 0}
    firmware = "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled"
    write(tmp_path, {firmware: "e0008"})
    assert Telemetry(tmp_path / "sys").read()["throttled"] == 1


def test_a_raspberry_pi_without_the_firmware_s_file_has_the_alarm_of_its_supply(tmp_path: Path) -> None:
    board = {path: value for path, value in RASPBERRY_PI_4.items() if not path.endswith("get_throttled")}
    assert read(tmp_path, board)["throttled"] == 1
    write(tmp_path, hwmon(1, "rpi_volt", in0_lcrit_alarm=0))
    assert Telemetry(tmp_path / "sys").read()["throttled"] == 0


def test_a_pynq_has_a_temperature_and_no_clock_and_no_power(tmp_path: Path) -> None:
    assert read(tmp_path, PYNQ_Z1) == {"temperature_c": pytest.approx((2545 - 2219) * 0.123040771484)}


@pytest.mark.parametrize("board", [ULTRA96_V2, ULTRASCALE_MAINLINE], ids=["ultra96", "mainline"])
def test_an_ultrascale_s_temperature_is_its_processors(tmp_path: Path, board: Files) -> None:
    assert read(tmp_path, board)["temperature_c"] == pytest.approx((40658 - 36058) * 7.771514892e-3)


def test_an_ultra96_has_rails_and_no_sum_of_them(tmp_path: Path) -> None:
    found = read(tmp_path, ULTRA96_V2)
    # What no regulator gives is 0 W, which was measured; what flows into one is not counted again.
    assert {name: value for name, value in found.items() if name.startswith("power")} == {
        "power_irps5401_6_0043_pout1_w": pytest.approx(0.812),
        "power_irps5401_6_0043_pout2_w": 0,
        "power_irps5401_6_0044_pout1_w": pytest.approx(0.812),
        "power_irps5401_6_0044_pout2_w": 0,
    }
    assert found["cpu_mhz"] == pytest.approx(1199.999)
    assert "throttled" not in found


def test_a_board_s_one_sensor_of_power_is_its_power(tmp_path: Path) -> None:
    found = read(tmp_path, ULTRASCALE_MAINLINE)
    assert found["power_w"] == found["power_ina226_w"] == pytest.approx(6.15)


def test_an_orin_nano_by_the_general_sensors(tmp_path: Path) -> None:
    found = read(tmp_path, ORIN_NANO)
    assert found == {
        "temperature_c": 49.218,
        "temperature_limit_c": 101,
        "cpu_mhz": pytest.approx(1510.4),
        "cpu_max_mhz": pytest.approx(1510.4),
        "power_w": pytest.approx(9.12),
        "power_vdd_in_w": pytest.approx(9.12),
        "power_vdd_cpu_gpu_cv_w": pytest.approx(3.31),
        "power_vdd_soc_w": pytest.approx(2.21),
        "throttled": 0,
        "throttle_events": 5,
    }


def test_an_agx_orin_s_power_is_the_sum_of_what_is_fed_from_outside(tmp_path: Path) -> None:
    found = read(tmp_path, AGX_ORIN_JETPACK_7)
    assert found["power_w"] == pytest.approx(3.99 + 1.9 + 4.5)
    assert found["power_vddq_vdd2_1v8ao_w"] == pytest.approx(0.6)
    assert "power_nc_w" not in found
    write(tmp_path, {"sys/class/hwmon/hwmon1/curr2_input": "nonsense"})
    # Part of it is not the whole.
    assert "power_w" not in Rails(tmp_path / "sys").read()


def test_thor_s_power_is_at_its_input_and_its_sensors_have_an_offset(tmp_path: Path) -> None:
    found = read(tmp_path, THOR)
    assert found["power_w"] == found["power_vin_w"] == pytest.approx(29.1)
    assert found["power_vdd_gpu_w"] == pytest.approx(-0.38)


def test_an_atlas_tells_little_by_itself(tmp_path: Path) -> None:
    assert read(tmp_path, ATLAS_200I_DK_A2) == {"temperature_c": 51}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"sys/class/thermal/cooling_device2/cur_state": "1"}, "gpu-throttle-alert"),
        ({"sys/class/hwmon/hwmon1/curr1_crit_alarm": "1"}, "VDD_IN"),
    ],
)
def test_what_slows_a_jetson_down_is_named(tmp_path: Path, changed: Files, reason: str) -> None:
    throttling = Throttling(write(tmp_path, ORIN_NANO) / "sys")
    assert throttling.reasons() == []
    write(tmp_path, changed)
    assert throttling.reasons() == [reason]
    assert throttling.read()["throttled"] == 1
    # A fan that runs slows nothing down, and a lower alarm is a warning.
    write(tmp_path, dict.fromkeys(changed, "0"))
    write(tmp_path, {"sys/class/thermal/cooling_device0/cur_state": "3", "sys/class/hwmon/hwmon1/curr1_max_alarm": "1"})
    assert throttling.read()["throttled"] == 0


ALL = {
    "pi-4": RASPBERRY_PI_4,
    "pi-5": RASPBERRY_PI_5,
    "pynq": PYNQ_Z1,
    "ultra96": ULTRA96_V2,
    "mainline": ULTRASCALE_MAINLINE,
    "atlas": ATLAS_200I_DK_A2,
    **JETSONS,
}


@pytest.mark.parametrize("content", ["", "\n", "nonsense", "1e+999", "nan", "-274000", "9" * 400, "\0\0"])
@pytest.mark.parametrize("board", list(ALL))
def test_sensors_that_fail_are_absent(tmp_path: Path, board: str, content: str) -> None:
    """Files that cannot be understood, from the start or from one moment on: no reading is made up, nothing raises."""
    keep = ("/name", "_label", "/type", "_type", "/device", "rail_name_", "_max_freq", "_min_freq", "throt_en")
    telemetry = Telemetry(write(tmp_path, ALL[board]) / "sys", tmp_path / "proc")
    failing = {path: content for path in ALL[board] if not path.endswith(keep) and "rail_name" not in path}
    write(tmp_path, failing)
    for reader in (telemetry, Telemetry(tmp_path / "sys", tmp_path / "proc")):
        found = {name for name in reader.read() if name not in ALWAYS}
        if content == "-274000":  # a number, but no temperature
            assert not {name for name in found if name.startswith("temperature_c")}
        else:
            assert found <= {"cpu_max_mhz", "temperature_limit_c"}


@given(st.binary(max_size=64))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_file_is_a_number_or_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "value"
    path.write_bytes(content)
    for base in (10, 16):
        value = number(path, base)
        assert value is None or abs(value) < 1e18
    assert isinstance(text(path), str)
