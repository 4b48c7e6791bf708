"""Emulated processors are told from real ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from targets.emulation import emulated_on


@pytest.mark.parametrize(
    ("machine", "kernel", "found"),
    [
        ("aarch64", "x86_64", "x86_64"),
        ("armv7l", "x86_64", "x86_64"),
        # Old programs on new kernels of the same family.
        ("armv7l", "aarch64", ""),
        ("armv8l", "aarch64", ""),
        ("i686", "x86_64", ""),
        ("aarch64", "aarch64", ""),
        ("riscv64", "x86_64", "x86_64"),
    ],
)
def test_the_kernel_says_what_is_underneath(tmp_path: Path, machine: str, kernel: str, found: str) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/arch").write_text(f"{kernel}\n")
    assert emulated_on(machine, tmp_path) == found


def test_an_older_kernel_is_known_by_its_processors_microcode(tmp_path: Path) -> None:
    assert emulated_on("aarch64", tmp_path) == ""
    (tmp_path / "sys/devices/system/cpu/cpu0/microcode").mkdir(parents=True)
    assert emulated_on("aarch64", tmp_path) == "x86_64"
    assert emulated_on("x86_64", tmp_path) == ""


def test_this_machine_is_no_other() -> None:
    assert emulated_on() == emulated_on(os.uname().machine) == ""
