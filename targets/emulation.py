"""Whether this processor is another's program: what an emulated board measures is no board's figure."""

from __future__ import annotations

import os
from pathlib import Path

#: Kernels that run the programs of each kind of processor by themselves, by the beginning of the machine's name.
_FAMILIES = {"aarch64": "ARM", "arm": "ARM", "x86_64": "x86", "i": "x86", "riscv": "RISC-V"}


def emulated_on(machine: str = "", root: Path = Path("/")) -> str:
    """The machine underneath, such as ``x86_64``, when programs for ``machine`` (this process's own) are emulated.

    Emulators of one program (qemu's user mode) say the machine that they stand in for, but what the kernel tells of
    itself in files comes from the kernel that is there: its architecture since Linux 6.1, and x86's microcode before.
    Empty where neither says otherwise.
    """
    machine = machine or os.uname().machine
    try:
        kernel = (root / "proc/sys/kernel/arch").read_text().strip()
    except OSError:
        kernel = "x86_64" if (root / "sys/devices/system/cpu/cpu0/microcode").is_dir() else ""
    return kernel if kernel and _family(kernel) != _family(machine) else ""


def _family(machine: str) -> str:
    return next((family for start, family in _FAMILIES.items() if machine.startswith(start)), machine)
