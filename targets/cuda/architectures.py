"""Architectures of GPUs: what a build compiles for, and which of its files a GPU takes.

``sm_90`` is machine code for compute capability 9.0, which runs on 9.x from 9.0 on. ``compute_90`` is PTX, which the
driver compiles at the first load for any GPU from 9.0 on, if the driver is as new as the compiler was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from targets.base import FleetError

#: Turing, Ampere (and Ada), Hopper, Blackwell for servers, Blackwell for desktops.
DEFAULT = "sm_75,sm_80,sm_90,sm_100,sm_120"
#: The oldest that CUDA 13 compiles for.
OLDEST = 75
MAX_ARCHITECTURES = 16
FOLDER = "kernels"
_NAME = re.compile(r"(sm|compute)_(\d{2,3})")


def parse(option: str) -> tuple[str, ...]:
    """The architectures of the option ``arch``. Raises :class:`FleetError` (``bad-option``)."""
    names = tuple(name.strip() for name in option.split(","))
    for name in names:
        if not _NAME.fullmatch(name) or number(name) < OLDEST:
            raise FleetError(
                f"option 'arch' names no architecture that there is a compiler for: '{name}'",
                code="bad-option",
                hint=f"such as {DEFAULT}; from sm_{OLDEST} on; compute_90 is PTX, for GPUs that come later",
            )
    if len(names) != len(set(names)) or len(names) > MAX_ARCHITECTURES:
        raise FleetError(f"option 'arch' names one twice, or more than {MAX_ARCHITECTURES}", code="bad-option")
    return names


def number(name: str) -> int:
    """90 of ``sm_90`` and ``compute_90``."""
    return int(name.partition("_")[2])


def file_name(name: str) -> str:
    """The file of a bundle that has the kernels of an architecture."""
    return f"{FOLDER}/{name}.{'cubin' if name.startswith('sm_') else 'ptx'}"


def in_files(paths: Iterable[str]) -> tuple[str, ...]:
    """The architectures whose kernels are among a bundle's files."""
    stems = [path[len(FOLDER) + 1 :].partition(".")[0] for path in paths if path.startswith(f"{FOLDER}/")]
    return tuple(stem for stem in stems if _NAME.fullmatch(stem))


def best(names: Iterable[str], capability: int) -> str:
    """What a GPU of this compute capability (90: 9.0) runs, machine code before PTX, newest first; empty for none."""

    def rank(name: str) -> tuple[bool, int]:
        return name.startswith("sm_"), number(name)

    return max((name for name in names if _runs(name, capability)), key=rank, default="")


def _runs(name: str, capability: int) -> bool:
    if number(name) > capability:
        return False
    return not name.startswith("sm_") or number(name) // 10 == capability // 10
