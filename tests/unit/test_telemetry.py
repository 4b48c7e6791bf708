"""Telemetry, on this machine and on the sysfs trees of boards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from agent.telemetry import LoadMark, Telemetry, other_load, steal

RASPBERRY_PI_4 = {
    "class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "class/thermal/thermal_zone0/temp": "48686\n",
    "class/thermal/thermal_zone0/trip_point_0_type": "critical\n",
    "class/thermal/thermal_zone0/trip_point_0_temp": "110000\n",
    "devices/system/cpu/cpufreq/policy0/scaling_governor": "ondemand\n",
    "devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1500000\n",
    "devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1800000\n",
    "devices/platform/soc/soc:firmware/get_throttled": "50005\n",
}
INTEL_LAPTOP = {
    "class/thermal/thermal_zone0/type": "acpitz\n",
    "class/thermal/thermal_zone0/temp": "27800\n",
    "class/thermal/thermal_zone7/type": "x86_pkg_temp\n",
    "class/thermal/thermal_zone7/temp": "61000\n",
    "class/thermal/thermal_zone7/trip_point_0_type": "passive\n",
    "class/thermal/thermal_zone7/trip_point_0_temp": "95000\n",
    "class/thermal/thermal_zone7/trip_point_1_type": "passive\n",
    "class/thermal/thermal_zone7/trip_point_1_temp": "0\n",
    "devices/system/cpu/cpufreq/policy0/scaling_governor": "powersave\n",
    "devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "800024\n",
    "devices/system/cpu/cpufreq/policy0/scaling_max_freq": "4700000\n",
    "devices/system/cpu/cpufreq/policy1/scaling_governor": "performance\n",
    "devices/system/cpu/cpufreq/policy1/scaling_cur_freq": "3912345\n",
    "devices/system/cpu/cpufreq/policy1/scaling_max_freq": "4700000\n",
    "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "12\n",
    "devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "30\n",
    "devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "0\n",
    "class/powercap/intel-rapl:0/energy_uj": "1000000\n",
}


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_a_raspberry_pi(tmp_path: Path) -> None:
    telemetry = Telemetry(write(tmp_path, RASPBERRY_PI_4))
    found = telemetry.read()
    assert found["temperature_c"] == 48.686
    assert "temperature_limit_c" not in found
    assert (found["cpu_mhz"], found["cpu_max_mhz"]) == (1500, 1800)
    assert found["throttled"] == 1
    assert telemetry.governor() == "ondemand"
    # Throttled earlier (bits 16 to 19), but not now.
    write(tmp_path, {"devices/platform/soc/soc:firmware/get_throttled": "50000\n"})
    assert telemetry.read()["throttled"] == 0


def test_a_laptop(tmp_path: Path) -> None:
    telemetry = Telemetry(write(tmp_path, INTEL_LAPTOP))
    found = telemetry.read()
    assert (found["temperature_c"], found["temperature_limit_c"]) == (61, 95)
    assert (found["cpu_mhz"], found["cpu_max_mhz"]) == (3912.345, 4700)
    assert found["throttle_events"] == 42
    assert telemetry.governor() == "performance+powersave"
    write(tmp_path, {"class/powercap/intel-rapl:0/energy_uj": "3000000\n"})
    assert telemetry.read()["power_w"] > 0
    # The counter has wrapped around: no power rather than a wrong one.
    write(tmp_path, {"class/powercap/intel-rapl:0/energy_uj": "5\n"})
    assert "power_w" not in telemetry.read()


def test_a_power_sensor(tmp_path: Path) -> None:
    found = Telemetry(write(tmp_path, {"class/hwmon/hwmon3/power1_input": "5250000\n"})).read()
    assert found["power_w"] == 5.25


def test_what_cannot_be_read_is_absent(tmp_path: Path) -> None:
    files = dict.fromkeys({**RASPBERRY_PI_4, **INTEL_LAPTOP}, "nonsense\n")
    for root in (tmp_path / "empty", write(tmp_path / "nonsense", files)):
        telemetry = Telemetry(root, root)
        assert set(telemetry.read()) == {"memory_bytes", "memory_percent"}
    assert Telemetry(tmp_path / "empty").governor() == ""


def test_a_sensor_that_is_off_says_nothing(tmp_path: Path) -> None:
    write(tmp_path, {"class/thermal/thermal_zone0/temp": "-274000\n", "class/thermal/thermal_zone0/type": "cpu\n"})
    assert "temperature_c" not in Telemetry(tmp_path).read()


def test_cpu_percent_is_of_all_cores_since_the_reading_before(tmp_path: Path) -> None:
    write(tmp_path, {"stat": "cpu  100 0 100 800 0 0 0 0 0 0\n", "loadavg": "1.25 0.5 0.25 1/100 4242\n"})
    telemetry = Telemetry(tmp_path, tmp_path)
    write(tmp_path, {"stat": "cpu  150 0 110 830 10 0 0 0 0 0\n"})
    found = telemetry.read()
    assert found["cpu_percent"] == pytest.approx(60)
    assert found["load1"] == 1.25
    # Nothing has been counted since: what was last known still holds.
    assert telemetry.read()["cpu_percent"] == pytest.approx(60)


def test_this_machine_is_read_cheaply() -> None:
    telemetry = Telemetry()
    telemetry.read()
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        found = telemetry.read()
        seconds.append(time.perf_counter() - start)
    assert sorted(seconds)[25] < 2e-3
    assert 0 <= found["cpu_percent"] <= 100
    assert found["memory_bytes"] > 1e6
    assert found["load1"] >= 0


def test_other_load_is_what_neither_we_nor_idle_used() -> None:
    start, end = LoadMark(10, 100, 5, 1), LoadMark(30, 140, 15, 3)
    assert other_load(start, end) == pytest.approx(10 / 40)
    assert steal(start, end) == pytest.approx(2 / 40)
    assert other_load(start, start) == 0
    # Counters of /proc are rounded to ticks: never below nothing.
    assert other_load(start, LoadMark(10, 140, 9, 1)) == 0


def test_our_own_processes_are_not_other_load() -> None:
    """A child of ours spins, is waited for, and its time is still ours; seen from elsewhere it is others'."""
    telemetry = Telemetry()
    own, foreign = telemetry.mark([os.getpid()]), telemetry.mark([])
    spin = "import time\nwhile time.process_time() < 0.6: pass"
    subprocess.run([sys.executable, "-c", spin], check=True)
    own_end, foreign_end = telemetry.mark([os.getpid()]), telemetry.mark([])
    assert own_end.own - own.own >= 0.55  # counted in ticks
    assert foreign_end.own == foreign.own == 0
    spent = (own_end.total - own.total) * (other_load(foreign, foreign_end) - other_load(own, own_end))
    assert spent >= 0.5


def test_processes_that_are_gone_count_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert Telemetry().mark([process.pid]).own == 0


def test_the_agent_s_telemetry_needs_no_numpy() -> None:
    code = "import sys, agent.telemetry; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
