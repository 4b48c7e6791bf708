"""Telemetry and conditions of Jetsons, on trees as their releases have them."""

from __future__ import annotations

import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from board_trees import (
    AGX_ORIN_JETPACK_7,
    JETSONS,
    ORIN_NANO,
    THOR,
    XAVIER_NX_JETPACK_4,
    Files,
    cooling,
    device_tree,
    l4t,
    write,
)
from hypothesis import given
from hypothesis import strategies as st

from targets.jetson import identity, power
from targets.jetson.conditions import JetsonTelemetry
from targets.jetson.power import ModeList, PowerMode
from targets.jetson.releases import MODULES, RELEASES, SERIES
from targets.jetson.sysfs import Clock, JetsonSensors, Roots
from targets.jetson.tegrastats import Tegrastats


def board(root: Path, files: Files) -> JetsonTelemetry:
    return JetsonTelemetry(Roots.below(write(root, files)))


# --- Readings -----------------------------------------------------------------------------------


def test_an_orin_nano(tmp_path: Path) -> None:
    found = board(tmp_path, ORIN_NANO).read()
    assert found == pytest.approx(
        {
            "temperature_cpu_c": 49.218,
            "temperature_gpu_c": 48.5,  # cv0 is off: it has no temperature
            "temperature_tj_c": 49.218,
            "temperature_c": 49.218,
            "temperature_limit_c": 101,
            "gpu_mhz": 611,
            "gpu_max_mhz": 1020,
            "gpu_percent": 71,
            "fan_percent": 40,
            "power_w": 9.12,
            "power_vdd_in_w": 9.12,
            "power_vdd_cpu_gpu_cv_w": 3.31,
            "power_vdd_soc_w": 2.21,
            "throttled": 0,
            "throttle_events": 5,
            "power_mode_id": 2,
        }
    )


def test_a_xavier_of_jetpack_4(tmp_path: Path) -> None:
    found = board(tmp_path, XAVIER_NX_JETPACK_4).read()
    assert (found["power_w"], found["power_vdd_cpu_gpu_cv_w"]) == pytest.approx((5.21, 1.41))
    assert (found["gpu_mhz"], found["gpu_percent"]) == pytest.approx((803.25, 31.1))
    assert (found["temperature_c"], found["temperature_limit_c"]) == (40.5, 95.5)
    # The PMIC's zone says the same at all times; there is no alarm, no fan and no clock of the memory for users.
    assert not found.keys() & {"temperature_pmic_die_c", "throttled", "fan_percent", "emc_mhz", "power_nc_w"}


def test_a_thor(tmp_path: Path) -> None:
    found = board(tmp_path, THOR).read()
    assert found["gpu_mhz"] == 1575
    assert found["emc_mhz"] == 4266
    assert found["power_w"] == pytest.approx(29.1)
    assert "gpu_percent" not in found
    assert "temperature_gpu_c" not in found  # gated
    write(tmp_path, cooling(3, "devfreq-gpu-gpc-0", 18))
    assert board(tmp_path, {}).read()["throttled"] == 1


def test_the_memory_s_clock_is_read_where_root_may(tmp_path: Path) -> None:
    found = board(tmp_path, {**ORIN_NANO, "sys/kernel/debug/bpmp/debug/clk/emc/rate": "2133000000"}).read()
    assert found["emc_mhz"] == 2133


def test_no_board_tells_nothing(tmp_path: Path) -> None:
    empty = board(tmp_path, {})
    assert empty.read() == {}
    assert empty.conditions() == {"clocks": "unknown"}


@pytest.mark.parametrize("files", JETSONS.values(), ids=JETSONS)
def test_a_reading_is_cheap(tmp_path: Path, files: Files) -> None:
    one = board(tmp_path, files)
    seconds = []
    for _ in range(30):
        start = time.perf_counter()
        one.read()
        seconds.append(time.perf_counter() - start)
    assert sorted(seconds)[10] < 5e-3


def test_neither_readings_nor_conditions_import_what_is_heavy() -> None:
    code = (
        "import sys, targets.jetson.conditions as c; c.telemetry(); c.conditions();"
        "sys.exit(bool({'torch', 'numpy', 'tvm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tegrastats_fills_in_what_sysfs_lacks_and_no_more(tmp_path: Path) -> None:
    tool = tmp_path / "tegrastats"
    line = "GR3D_FREQ 12%@306 EMC_FREQ 7%@2133 tj@44C VDD_IN 8000mW/8000mW VDD_SOC 1000mW/1000mW"
    tool.write_text(f"#!/bin/sh\nwhile true; do echo '{line}'; sleep 0.1; done\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    whole = Tegrastats([str(tool)])
    complete = JetsonTelemetry(Roots.below(write(tmp_path / "orin", ORIN_NANO)), whole)
    assert complete.read()["gpu_percent"] == 71
    assert whole.pid is None  # it was not needed
    lacking = {path: text for path, text in ORIN_NANO.items() if "/hwmon/hwmon1/" not in path}
    stats = Tegrastats([str(tool)])
    telemetry = JetsonTelemetry(Roots.below(write(tmp_path / "bare", lacking)), stats)
    try:
        deadline = time.monotonic() + 20
        while "power_w" not in (found := telemetry.read()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        stats.close()
    assert (found["power_w"], found["power_vdd_soc_w"], found["emc_percent"]) == (8, 1, 7)
    assert (found["gpu_percent"], found["temperature_c"]) == (71, 49.218)  # sysfs comes first


# --- Conditions ---------------------------------------------------------------------------------


def test_conditions_of_an_orin_nano(tmp_path: Path) -> None:
    assert board(tmp_path, ORIN_NANO).conditions() == {
        "board": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "module": "Jetson Orin Nano 8GB (p3767-0005)",
        "chip": "Orin (sm_87)",
        "l4t": "36.4.7",
        "jetpack": "6.2.1",
        "jetpack_cuda": "12.6",
        "jetpack_tensorrt": "10.3",
        "power_mode": "MAXN_SUPER",
        "power_mode_id": "2",
        "power_mode_default": "25W",
        "clocks": "not pinned",
        "gpu_clock": "306 to 1020 MHz, now 611, nvhost_podgov",
        "cpu_clock": "730 to 1510 MHz, now 1510, schedutil | 730 to 1510 MHz, now 730, schedutil",
        "cpus_online": "0-5",
        "fan": "40%",
        "throttling": "no",
        "power_source": "VDD_IN",
        "power_note": "the INA3221 gives averages and is slow: energy is of runs of several seconds only",
    }


def test_conditions_of_an_agx_orin_with_pinned_clocks_that_throttles(tmp_path: Path) -> None:
    found = board(tmp_path, {**AGX_ORIN_JETPACK_7, **cooling(1, "cpu-throttle-alert", 1)}).conditions()
    assert (found["clocks"], found["l4t"], found["jetpack"]) == ("pinned", "39.2.1", "7.2.1")
    assert found["cpu_clock"] == "2202 to 2202 MHz, now 2202, performance"
    assert found["throttling"] == "cpu-throttle-alert"
    assert found["power_source"] == "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert (found["power_mode"], found["power_mode_id"]) == ("MAXN", "0")


def test_clocks_are_pinned_when_none_can_move() -> None:
    fixed, gated, free = Clock(1020, 1020, 1020), Clock(0, 1020, 1020), Clock(306, 306, 1020)
    assert power.pinned([fixed, gated, None]) == "pinned"
    assert power.pinned([fixed, free]) == "not pinned"
    assert power.pinned([Clock(612, 1020, 1020)]) == "not pinned"  # slowed down by something else
    assert power.pinned([Clock(612, None, None), None]) == "unknown"


# --- The power mode -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", PowerMode("MAXN", 0)),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n", PowerMode("MODE_15W_6CORE", 2)),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: 25W\n1\n", PowerMode("25W", 1)),
        ("NV Power Mode: MAXN_SUPER\nNVPM WARN: something\n2\n", PowerMode("MAXN_SUPER", 2)),
        ("NVPOWERMODE:MAXP_CORE_ARM\n3\n", PowerMode("MAXP_CORE_ARM", 3)),
        ("NV Power Mode: 15W", PowerMode("15W", None)),
        ("7\n", PowerMode()),
        ("Error: must be root\n", PowerMode()),
        ("", PowerMode()),
    ],
)
def test_what_nvpmodel_prints(printed: str, mode: PowerMode) -> None:
    assert power.parse_query(printed) == mode


def test_the_list_of_modes(tmp_path: Path) -> None:
    roots = Roots.below(write(tmp_path, ORIN_NANO))
    assert power.modes(roots) == ModeList({0: "15W", 1: "25W", 2: "MAXN_SUPER"}, 1)
    assert power.status(roots) == PowerMode("MAXN_SUPER", 2)
    write(tmp_path, {"var/lib/nvpmodel/status": "pmode:0009"})
    assert power.status(roots) == PowerMode("", 9)
    assert power.status(Roots.below(tmp_path / "empty")) == PowerMode()


def test_the_tool_is_asked_first_and_its_note_read_else(tmp_path: Path) -> None:
    roots = Roots.below(write(tmp_path, ORIN_NANO))
    tool = tmp_path / "nvpmodel"

    def answers(script: str) -> PowerMode:
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        return power.current(roots, str(tool))

    assert answers("echo 'NV Power Mode: 7W'; echo 3") == PowerMode("7W", 3)
    assert answers("echo 'must be root' >&2; exit 1") == PowerMode("MAXN_SUPER", 2)
    assert answers("head -c 300000 /dev/urandom") == PowerMode("MAXN_SUPER", 2)
    tool.unlink()
    assert power.current(roots, str(tool)) == PowerMode("MAXN_SUPER", 2)


def test_a_tool_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "DEADLINE", 0.2)
    tool = tmp_path / "nvpmodel"
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    assert power.query(str(tool)) == PowerMode()


@given(st.text(max_size=300))
def test_any_text_is_a_mode_a_list_or_a_release(text: str) -> None:
    assert isinstance(power.parse_query(text), PowerMode)
    assert isinstance(power.parse_modes(text), ModeList)
    assert isinstance(identity.parse_release(text), str)
    assert isinstance(identity.release(text).jetpack, str)


@given(
    st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_", min_size=1, max_size=20),
    st.integers(0, 99),
    st.lists(st.just("NVPM WARN: clock is off"), max_size=2),
)
def test_modes_go_round(name: str, number: int, warnings: list[str]) -> None:
    printed = "\n".join([*warnings, f"NV Power Mode: {name}", *warnings, str(number), ""])
    assert power.parse_query(printed) == PowerMode(name, number)
    conf = f"# < PM_CONFIG DEFAULT=77 >\n< POWER_MODEL ID={number} NAME={name} >\n< PM_CONFIG DEFAULT={number} >\n"
    assert power.parse_modes(conf) == ModeList({number: name}, number)


# --- Identity -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan 8", "36.4.3"),
        ("# R32 (release), REVISION: 7.4, GCID: 33514132, BOARD: t186ref, EABI: aarch64, DATE: Fri Jun 9", "32.7.4"),
        ("# R39 (release), REVISION: 2.1, GCID: 1, BOARD: generic", "39.2.1"),
        ("# R38 (release), REVISION: 4", "38.4.0"),
        ("R36", ""),
        ("", ""),
    ],
)
def test_the_release_file(printed: str, found: str) -> None:
    assert identity.parse_release(printed) == found


def test_the_package_of_a_container() -> None:
    assert identity.parse_package("nvidia-l4t-core\t36.4.3-20250107174145\n") == "36.4.3"
    assert identity.parse_package("dpkg-query: no packages found matching nvidia-l4t-core") == ""


def test_a_release_that_nobody_has_heard_of() -> None:
    """The series is known by its major version; what is within it by releases with the same minor only."""
    assert identity.release("36.4.9")[1:] == ("6.x", "12.6", "10.3")
    assert identity.release("36.9.0")[1:] == ("6.x", "", "")
    assert identity.release("41.1.0")[1:] == ("", "", "")
    assert identity.release("")[1:] == ("", "", "")


def test_the_tables_agree_with_themselves() -> None:
    assert len({each.l4t for each in RELEASES}) == len(RELEASES)
    keys = [tuple(map(int, each.l4t.split("."))) for each in RELEASES]
    assert keys == sorted(keys)
    for each in RELEASES:
        assert each.jetpack.startswith(SERIES[int(each.l4t.split(".")[0])])
        assert identity.release(each.l4t) == each
    assert all(part.startswith("p") for part in MODULES)


@pytest.mark.parametrize(
    ("files", "module", "chip", "sm"),
    [
        (XAVIER_NX_JETPACK_4, "Jetson Xavier NX", "Xavier", "7.2"),
        (ORIN_NANO, "Jetson Orin Nano 8GB", "Orin", "8.7"),
        (AGX_ORIN_JETPACK_7, "Jetson AGX Orin 64GB", "Orin", "8.7"),
        (THOR, "Jetson AGX Thor", "Thor", "11.0"),
    ],
)
def test_modules_are_known_by_their_part(tmp_path: Path, files: Files, module: str, chip: str, sm: str) -> None:
    found = identity.find(Roots.below(write(tmp_path, files)))
    assert (found.module, found.chip, found.sm) == (module, chip, sm)
    assert found.is_jetson


def test_a_module_that_is_not_in_the_table_is_still_a_jetson(tmp_path: Path) -> None:
    files = {
        **device_tree("Some Carrier \x1b[31mwith Orin", ("acme,board+p9999-0001", "nvidia,tegra234")),
        **l4t(36, "9.9"),
    }
    found = identity.find(Roots.below(write(tmp_path, files)))
    assert (found.module, found.part, found.chip, found.jetpack) == ("", "", "Orin", "6.x")
    assert found.model == "Some Carrier [31mwith Orin"  # nothing that moves a cursor


def test_the_tree_of_the_firmware_stands_in_for_procfs(tmp_path: Path) -> None:
    moved = {path.replace("proc/device-tree", "sys/firmware/devicetree/base"): text for path, text in THOR.items()}
    assert identity.find(Roots.below(write(tmp_path, moved))).chip == "Thor"


def test_another_machine_is_no_jetson(tmp_path: Path) -> None:
    files = device_tree("Raspberry Pi 4 Model B Rev 1.4", ("raspberrypi,4-model-b", "brcm,bcm2711"))
    found = identity.find(Roots.below(write(tmp_path, files)))
    assert not found.is_jetson
    assert found.words() == {"board": "Raspberry Pi 4 Model B Rev 1.4"}


def test_a_gpu_is_found_among_what_else_is_scaled(tmp_path: Path) -> None:
    files = {path.replace("gpu-gpc-0", "17000000.vic"): text for path, text in THOR.items()}
    assert JetsonSensors(Roots.below(write(tmp_path, files))).gpu() is None
