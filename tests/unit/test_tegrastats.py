"""Lines of tegrastats of every generation, made up in the shapes that boards print; any text; the running tool."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.jetson.tegrastats import Core, Engine, Sample, Tegrastats, parse

MB = 1024.0**2
JETPACK_4_NANO = (
    "RAM 1903/3964MB (lfb 102x4MB) SWAP 12/1982MB (cached 1MB) IRAM 0/252kB(lfb 252kB) "
    "CPU [5%@1224,4%@1224,off,off] EMC_FREQ 3%@1600 GR3D_FREQ 21%@76 APE 25 PLL@37C CPU@40C PMIC@100C GPU@40.5C AO@45C "
    "thermal@40C POM_5V_IN 1750/1628 POM_5V_GPU 0/0 POM_5V_CPU 366/406"
)
JETPACK_4_XAVIER = (
    "RAM 2417/7771MB (lfb 1x512kB) SWAP 0/3885MB (cached 0MB) CPU [2%@1190,off,off,7%@1190,0%@1190,0%@1190] "
    "EMC_FREQ 0% GR3D_FREQ 0% AO@33C GPU@34C PMIC@100C AUX@33.5C CPU@35C thermal@33.9C VDD_IN 3214/3214 "
    "VDD_CPU_GPU_CV 442/442 VDD_SOC 964/964"
)
JETPACK_5 = (
    "11-03-2026 09:10:11 RAM 2101/6854MB (lfb 12x4MB) SWAP 0/3427MB (cached 0MB) "
    "CPU [7%@1190,3%@1190,0%@1190,1%@1190,off,off] EMC_FREQ 2%@1600 GR3D_FREQ 31%@803 APE 150 AUX@38C CPU@40.5C "
    "thermal@39.1C AO@38C GPU@39C PMIC@50C VDD_IN 5210mW/4890mW VDD_CPU_GPU_CV 1410mW/1120mW VDD_SOC 1300mW/1270mW"
)
JETPACK_6 = (
    "11-03-2026 09:10:11 RAM 3122/7620MB (lfb 3x4MB) SWAP 5/3810MB (cached 0MB) "
    "CPU [12%@1510,4%@1510,2%@729,0%@729,0%@729,1%@729] EMC_FREQ 9%@2133 GR3D_FREQ 71%@[611] NVDEC off NVJPG off "
    "NVJPG1 off VIC 22%@435 OFA off APE 200 cpu@49.2C soc2@47.8C soc0@47.1C gpu@49.9C tj@49.9C soc1@48.3C cv0@-256C "
    "VDD_IN 9120mW/8740mW VDD_CPU_GPU_CV 3310mW/3050mW VDD_SOC 2210mW/2180mW"
)
JETPACK_7_ORIN = (
    "11-03-2026 09:10:11 RAM 9876/62841MB (lfb 33x4MB) CPU [4%@2201,1%@2201,off,off] GR3D_FREQ 44%@[1295,1290] "
    "NVENC0 off NVDEC0 off NVDLA0 off PVA0_FREQ off cpu@51.5C/51.5C gpu@48.7C/48.9C tj@51.5C/99C "
    "VDD_GPU_SOC 3990mW/3980mW VDD_CPU_CV 1900mW/1880mW VIN_SYS_5V0 4500mW/4490mW"
)
JETPACK_7_THOR = (
    "11-03-2026 09:10:11 RAM 11200/125772MB (lfb 901x4MB) CPU [5%@1404,0%@972] GR3D_FREQ @[1575,1575,1575] cpu@46.1C "
    "gpu@44.8C tj@46.1C soc012@45.9C soc345@45.2C VDD_GPU -392mW/-20mW VDD_CPU_SOC_MSS 6210mW/6150mW "
    "VIN_SYS_5V0 6600mW/6580mW VIN 29100mW/28800mW"
)
LINES = {
    "4-nano": JETPACK_4_NANO,
    "4-xavier": JETPACK_4_XAVIER,
    "5": JETPACK_5,
    "6": JETPACK_6,
    "7-orin": JETPACK_7_ORIN,
    "7-thor": JETPACK_7_THOR,
}


def test_jetpack_4_has_no_time_and_no_units() -> None:
    found = parse(JETPACK_4_NANO)
    assert found.stamp == ""
    assert (found.memory_used, found.memory_total) == (1903 * MB, 3964 * MB)
    assert (found.swap_used, found.largest_free) == (12 * MB, 102 * 4 * MB)
    assert found.cores == (Core(5, 1224), Core(4, 1224), Core(), Core())
    assert found.engines == {
        "EMC_FREQ": Engine(True, 3, 1600),
        "GR3D_FREQ": Engine(True, 21, 76),
        "APE": Engine(mhz=25),
    }
    assert found.temperatures == {"PLL": 37, "CPU": 40, "PMIC": 100, "GPU": 40.5, "AO": 45, "thermal": 40}
    assert found.rails == {"POM_5V_IN": (1.75, 1.628), "POM_5V_GPU": (0, 0), "POM_5V_CPU": (0.366, 0.406)}


def test_jetpack_4_without_root_has_no_clocks() -> None:
    found = parse(JETPACK_4_XAVIER)
    assert found.engines["GR3D_FREQ"] == Engine(percent=0)
    assert found.largest_free == 512 * 1024
    readings = found.readings()
    assert readings["gpu_percent"] == 0
    assert "gpu_mhz" not in readings
    assert readings["power_vdd_in_w"] == 3.214


def test_jetpack_5() -> None:
    found = parse(JETPACK_5)
    assert found.stamp == "11-03-2026 09:10:11"
    assert found.engines["GR3D_FREQ"] == Engine(percent=31, mhz=803)
    assert found.rails["VDD_IN"] == (5.21, 4.89)
    assert found.cores[4:] == (Core(), Core())
    assert found.readings() == {
        "gpu_percent": 31,
        "gpu_mhz": 803,
        "emc_percent": 2,
        "emc_mhz": 1600,
        "temperature_aux_c": 38,
        "temperature_cpu_c": 40.5,
        "temperature_thermal_c": 39.1,
        "temperature_ao_c": 38,
        "temperature_gpu_c": 39,
        "temperature_pmic_c": 50,
        "power_vdd_in_w": 5.21,
        "power_vdd_cpu_gpu_cv_w": 1.41,
        "power_vdd_soc_w": 1.3,
    }


def test_jetpack_6_has_clusters_in_brackets_and_engines() -> None:
    found = parse(JETPACK_6)
    assert found.engines["GR3D_FREQ"] == Engine(percent=71, mhz=611)
    assert found.engines["NVJPG1"] == Engine(on=False)
    assert found.engines["VIC"] == Engine(percent=22, mhz=435)
    assert "cv0" not in found.temperatures  # a unit that is off
    assert found.temperatures["tj"] == 49.9


def test_jetpack_7_on_orin_has_limits_and_no_swap() -> None:
    found = parse(JETPACK_7_ORIN)
    assert found.swap_total is None
    assert found.engines["GR3D_FREQ"] == Engine(percent=44, mhz=1295)
    assert found.temperatures == {"cpu": 51.5, "gpu": 48.7, "tj": 51.5}
    assert "EMC_FREQ" not in found.engines


def test_jetpack_7_on_thor_has_no_load_of_the_gpu() -> None:
    found = parse(JETPACK_7_THOR)
    assert found.engines == {"GR3D_FREQ": Engine(percent=None, mhz=1575)}
    assert "gpu_percent" not in found.readings()
    assert found.rails["VDD_GPU"] == (-0.392, -0.02)
    assert found.rails["VIN"] == (29.1, 28.8)


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_every_field_may_be_missing(line: str) -> None:
    """Each word left out in turn: nothing raises, and what the rest says is understood as before."""
    words = line.split()
    whole = parse(line)
    for place in range(len(words)):
        found = parse(" ".join(words[:place] + words[place + 1 :]))
        assert found.temperatures.items() <= whole.temperatures.items()
        assert found.rails.items() <= whole.rails.items()
        assert len(whole.temperatures) + len(whole.rails) - len(found.temperatures) - len(found.rails) <= 2
        cut = parse(line[: len(line) * place // len(words)])
        assert len(cut.cores) <= len(whole.cores)


@given(st.text(max_size=400))
def test_any_text_is_a_sample(line: str) -> None:
    assert isinstance(parse(line), Sample)


_WORDS = st.sampled_from(sorted({word for line in LINES.values() for word in line.split()} | {"[", "]", "@", "%", "/"}))


@given(st.lists(_WORDS, max_size=60))
def test_words_in_any_order_are_a_sample(words: list[str]) -> None:
    found = parse(" ".join(words))
    assert all(-60 < value < 200 for value in found.temperatures.values())
    assert all(name.startswith(("gpu_", "emc_", "temperature_", "power_")) for name in found.readings())


_LOAD = st.integers(0, 100)
_CLOCK = st.integers(0, 9999)
_TENTHS = st.integers(-500, 1500).map(lambda tenths: tenths / 10)
_MILLIWATTS = st.integers(-999, 99999)


@st.composite
def printed(draw: st.DrawFn) -> tuple[str, Sample]:
    """A line and what it says, with any of its parts left out."""
    words: list[str] = []
    stamp = draw(st.sampled_from(["", "11-03-2026 09:10:11"]))
    words += [stamp] if stamp else []
    memory: dict[str, float] = {}
    for name in ("RAM", "SWAP"):
        if draw(st.booleans()):
            used, total = draw(st.integers(0, 200000)), draw(st.integers(0, 200000))
            memory |= {f"{name.lower()}u": used * MB, f"{name.lower()}t": total * MB}
            words.append(f"{name} {used}/{total}MB")
    cores = draw(st.lists(st.none() | st.tuples(_LOAD, _CLOCK), max_size=14))
    if cores:
        words.append("CPU [" + ",".join("off" if core is None else f"{core[0]}%@{core[1]}" for core in cores) + "]")
    engines: dict[str, Engine] = {}
    for name in draw(st.lists(st.sampled_from(["GR3D_FREQ", "EMC_FREQ", "NVDEC0", "VIC", "APE"]), unique=True)):
        form = draw(st.sampled_from(["off", "percent", "both", "brackets", "clocks", "clock"]))
        load, clocks = draw(_LOAD), draw(st.lists(_CLOCK, min_size=1, max_size=3))
        spelt = ",".join(map(str, clocks))
        words.append(
            f"{name} "
            + {
                "off": "off",
                "percent": f"{load}%",
                "both": f"{load}%@{clocks[0]}",
                "brackets": f"{load}%@[{spelt}]",
                "clocks": f"@[{spelt}]",
                "clock": str(clocks[0]),
            }[form]
        )
        engines[name] = {
            "off": Engine(on=False),
            "percent": Engine(percent=load),
            "both": Engine(percent=load, mhz=clocks[0]),
            "brackets": Engine(percent=load, mhz=max(clocks)),
            "clocks": Engine(mhz=max(clocks)),
            "clock": Engine(mhz=clocks[0]),
        }[form]
    temperatures = draw(st.dictionaries(st.sampled_from(["cpu", "gpu", "tj", "soc012", "AO", "thermal"]), _TENTHS))
    limit = draw(st.sampled_from(["", "/99C", "/104.5C"]))
    words += [f"{name}@{value:g}C{limit}" for name, value in temperatures.items()]
    rails = draw(
        st.dictionaries(st.sampled_from(["VDD_IN", "VIN", "VDD_SOC", "CV"]), st.tuples(_MILLIWATTS, _MILLIWATTS))
    )
    unit = draw(st.sampled_from(["", "mW"]))
    words += [f"{name} {now}{unit}/{mean}{unit}" for name, (now, mean) in rails.items()]
    said = Sample(
        stamp=stamp,
        memory_used=memory.get("ramu"),
        memory_total=memory.get("ramt"),
        swap_used=memory.get("swapu"),
        swap_total=memory.get("swapt"),
        cores=tuple(Core() if core is None else Core(*core) for core in cores),
        engines=engines,
        temperatures={name: value for name, value in temperatures.items() if -60 < value < 200},
        rails={name: (now / 1e3, mean / 1e3) for name, (now, mean) in rails.items()},
    )
    return " ".join(words), said


@given(printed())
def test_what_is_printed_is_what_is_read(line: tuple[str, Sample]) -> None:
    assert parse(line[0]) == line[1]


def test_a_line_without_end_is_cut() -> None:
    assert parse("tj@40C " + "x" * 10_000_000).temperatures == {"tj": 40}
    assert parse("CPU [" + "1%@1," * 10_000_000).cores


# --- The tool itself ----------------------------------------------------------------------------

#: Prints as the tool does, in blocks unless its output is made to come in lines; notes its process.
TOOL = """#!/bin/sh
echo $$ > {folder}/pid
while true; do printf '%s\\n' '{line}'; sleep 0.05; done
"""


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def tool(tmp_path: Path) -> str:
    path = tmp_path / "tegrastats"
    path.write_text(TOOL.format(folder=tmp_path, line=JETPACK_6))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_running_tool_is_read_and_ended(tool: str) -> None:
    stats = Tegrastats([tool], interval_ms=1000)
    assert stats.there
    assert stats.latest() is None  # it has only just been started
    eventually(lambda: stats.latest() is not None)
    sample = stats.latest()
    assert sample is not None
    assert sample.rails["VDD_IN"] == (9.12, 8.74)
    pid = stats.pid
    assert pid is not None
    stats.close()
    assert not psutil.pid_exists(pid)
    assert stats.latest() is None or not psutil.pid_exists(pid)
    assert stats.pid is None  # and it is not started again


def test_a_tool_that_nobody_asks_ends_and_starts_again(tool: str) -> None:
    now = [0.0]
    stats = Tegrastats([tool], idle=30, clock=lambda: now[0])
    stats.latest()
    eventually(lambda: stats.pid is not None)
    now[0] = 31.0
    eventually(lambda: stats.pid is None)
    now[0] = 100.0
    assert stats.latest() is None  # what it said last is old
    eventually(lambda: stats.latest() is not None)
    stats.close()


def test_a_tool_that_ends_or_is_not_there_is_nothing(tmp_path: Path) -> None:
    for command in ([str(tmp_path / "missing")], ["/bin/false"]):
        stats = Tegrastats(command)
        assert stats.latest() is None
        stats.close()
    assert not Tegrastats([]).there
    assert Tegrastats([]).latest() is None


def test_a_process_that_is_killed_takes_its_tool_with_it(tool: str, tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from targets.jetson.tegrastats import Tegrastats\n"
        f"stats = Tegrastats([{tool!r}])\n"
        "while stats.latest() is None: time.sleep(0.01)\n"
        "print(stats.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        os.kill(parent.pid, signal.SIGKILL)
        eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    finally:
        parent.kill()
        parent.communicate()
