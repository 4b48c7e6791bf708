"""Jetson's chips, as far as a GPU's code depends on them: the names, the architectures, the CUDA that compiles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from targets.base import FleetError
from targets.cuda.nvrtc import CUDA_11, CUDA_13, Release

#: One string for each name of the board's device tree, the most special first, each ends with a zero byte.
COMPATIBLE = Path("/proc/device-tree/compatible")


@dataclass(frozen=True, slots=True)
class Chip:
    """One system on a chip."""

    name: str
    #: As the device tree calls it.
    tegra: str
    #: 87 for compute capability 8.7.
    capability: int
    #: The CUDA that compiles for it: the oldest that knows it, so that the driver of every JetPack loads the result.
    release: Release
    #: Other names of its architecture.
    aliases: tuple[str, ...] = ()

    @property
    def architecture(self) -> str:
        return f"sm_{self.capability}"


CHIPS = (
    # JetPack 5 is its last, with CUDA 11.4.
    Chip("xavier", "tegra194", 72, CUDA_11),
    # JetPack 5 to 7, with CUDA 11.4 to 13.2.
    Chip("orin", "tegra234", 87, CUDA_11),
    # JetPack 7, from CUDA 13.0 on. Nothing is used that only sm_110a has.
    Chip("thor", "tegra264", 110, CUDA_13, ("sm_110a",)),
)


def named(name: str) -> Chip:
    """The chip for the option ``arch``. Raises :class:`FleetError` (``bad-option``) that lists what there is."""
    for chip in CHIPS:
        if name in (chip.name, chip.architecture, *chip.aliases):
            return chip
    known = ", ".join(f"{chip.name} ({chip.architecture})" for chip in CHIPS)
    raise FleetError(f"there is no Jetson '{name}' to compile for", code="bad-option", hint=f"arch is one of: {known}")


def here(compatible: Path = COMPATIBLE) -> Chip | None:
    """The chip of this machine; None when it is no Jetson that is known."""
    try:
        names = compatible.read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    return next((chip for chip in CHIPS if f"nvidia,{chip.tegra}" in names), None)
