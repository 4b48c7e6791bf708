"""The table of what sensors said during runs."""

from __future__ import annotations

import io

from rich.console import Console

from controller.cli.sensed import sensor_tables
from controller.reports import RunReport


def run(device: str, **conditions: float | str) -> RunReport:
    return RunReport(
        id="0123456789abcdef",
        device=device,
        target="jetson",
        model="net",
        bundle="b" * 64,
        engine="eager",
        batch=1,
        verdict="VALID",
        reason="",
        latency_ms=None,
        throughput=0.0,
        samples=0,
        counters={},
        simulated=False,
        conditions={name.replace("__", "."): value for name, value in conditions.items()},
    )


def printed(*reports: RunReport) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=160, color_system=None)
    for part in sensor_tables(reports):
        console.print(part)
    return [" ".join(line.split()) for line in out.getvalue().splitlines() if line.strip()]


def test_runs_on_boards_without_such_sensors_have_no_table() -> None:
    assert sensor_tables([run("pi", during__cpu_mhz=1500.0)]) == []
    assert sensor_tables([]) == []


def test_power_energy_clock_and_mode() -> None:
    orin = run(
        "orin",
        during__power_w=9.12,
        energy_per_item_j=0.0123,
        during__gpu_mhz=800.0,
        during__gpu_mhz_min=612.0,
        during__gpu_mhz_max=1020.0,
        during__temperature_c_max=61.7,
        thermal="soaked",
        power_mode="MAXN_SUPER",
        clocks="not pinned",
    )
    pinned = run("gpu", during__gpu_mhz=1980.0, during__gpu_mhz_min=1980.0, during__gpu_mhz_max=1980.0)
    assert printed(orin, run("pi"), pinned) == [
        "run device power W mJ/item gpu MHz °C heat mode clocks",
        "0123456789ab orin 9.12 12.3 612–1020 62 soaked MAXN_SUPER not pinned",
        "0123456789ab gpu — — 1980 — — — —",
    ]
