"""CPUs through TVM: one class per machine, all with the same host half and device half."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from targets.cpu.machine import ARM64_MACHINE, ARMV7_MACHINE, X86_MACHINE, Machine

if TYPE_CHECKING:
    from targets.cpu.device import CPUDevice
    from targets.cpu.host import CPUHost


class _CPU:
    """A :class:`targets.base.Target`."""

    name: ClassVar[str]
    description: ClassVar[str]
    machine: ClassVar[Machine]

    def host(self) -> CPUHost:
        from targets.cpu.host import CPUHost

        return CPUHost(self.machine)

    def device(self) -> CPUDevice:
        from targets.cpu.device import CPUDevice

        return CPUDevice()


class X86(_CPU):
    name = "x86"
    description = "x86-64 processors, through TVM"
    machine = X86_MACHINE


class ARM64(_CPU):
    name = "arm64"
    description = "64-bit ARM processors (Raspberry Pi 3 and newer, Jetson's CPU), through TVM"
    machine = ARM64_MACHINE


class ARMV7(_CPU):
    name = "armv7"
    description = "32-bit ARMv7-A processors with NEON (PYNQ-Z1 and Z2), through TVM"
    machine = ARMV7_MACHINE
