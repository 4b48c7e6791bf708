"""Processors of the CPU targets, and what a device says of a bundle that it cannot run."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from targets import base
from targets.base import FleetError, Requirements
from targets.cpu import machine
from targets.cpu.device import CPUDevice

LEVELS = ["x86-64-v4", "x86-64-v3", "x86-64-v2", "x86-64"]


def test_the_targets_are_installed() -> None:
    assert {"x86", "arm64", "armv7"} <= set(base.names())
    for name in ("x86", "arm64", "armv7"):
        target = base.find(name)
        assert target.name == name and target.description
        assert isinstance(target.host(), base.HostHalf) and isinstance(target.device(), base.DeviceHalf)
    with pytest.raises(FleetError, match="no target 'z80'"):
        base.find("z80")


def test_features_are_those_that_all_cores_have(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags : fpu avx avx2\n\nprocessor : 1\nflags : fpu avx\n")
    assert machine.cpu_features(cpuinfo) == {"fpu", "avx"}
    cpuinfo.write_text("processor : 0\nFeatures : half thumb neon vfpv3 vfpv4\n")
    assert machine.cpu_features(cpuinfo) == {"half", "thumb", "neon", "vfpv3", "vfpv4"}
    cpuinfo.write_text("processor : 0\nFeatures : fp asimd crc32\n")
    assert {"asimd", "neon", "vfpv3"} <= machine.cpu_features(cpuinfo)
    cpuinfo.write_text("")
    assert machine.cpu_features(cpuinfo) == frozenset()


@pytest.mark.parametrize("level", range(4))
def test_the_host_is_the_best_level_that_it_has_whole(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    have = frozenset(machine.X86_MACHINE.processors[LEVELS[level]].features)
    monkeypatch.setattr(machine, "cpu_features", lambda: have)
    monkeypatch.setattr(machine, "machine", lambda: "x86_64")
    assert machine.X86_MACHINE.processor("").mcpu == LEVELS[level]
    # One feature short is the level below.
    monkeypatch.setattr(machine, "cpu_features", lambda: frozenset(sorted(have)[1:]))
    assert machine.X86_MACHINE.processor("host").mcpu in LEVELS[min(level + 1, 3) :]


def test_a_host_of_another_machine_asks_for_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "machine", lambda: "riscv64")
    assert machine.X86_MACHINE.processor("host").mcpu == "x86-64"
    assert machine.ARM64_MACHINE.processor("host").mcpu == "generic"
    assert machine.ARM64_MACHINE.processor("").mcpu == "generic"
    assert machine.ARMV7_MACHINE.processor("").mcpu == "cortex-a9"


def test_a_32_bit_system_on_a_64_bit_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert machine.machine() == "aarch64"
    monkeypatch.setattr("struct.calcsize", lambda _format: 4)
    assert machine.machine() == "armv7l"


def test_what_a_device_lacks_is_named() -> None:
    device = CPUDevice()
    here = machine.machine()
    assert device.unmet(Requirements(machine=here)) == ""
    assert "for vax" in device.unmet(Requirements(machine="vax"))
    missing = device.unmet(Requirements(machine=here, cpu_features=("quantum", "antigravity")))
    assert missing == "this processor lacks antigravity, quantum"
    assert "needs apache-tvm 0.1" in device.unmet(Requirements(runtime={"apache-tvm": "0.1"}))
    assert "no-such-runtime 1 is not installed" in device.unmet(Requirements(runtime={"no-such-runtime": "1"}))


def test_the_toolchain_is_cheap_and_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    script = (
        "import sys; from targets.base import find\n"
        "toolchain = find('x86').host().toolchain({'mcpu': 'generic'})\n"
        "assert toolchain['mcpu'] == 'x86-64' and toolchain['apache-tvm'] and toolchain['ziglang']\n"
        "heavy = {'tvm', 'torch', 'numpy', 'onnx', 'ziglang'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
