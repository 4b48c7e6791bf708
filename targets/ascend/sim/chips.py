"""Facts about Ascend chips that decide what the tools print."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

#: ``910`` is the first generation of training chips, ``910B`` the second, ``A3`` two dies in one package.
Family = Literal["310", "310B", "310P", "910", "910B", "A3"]

_NAMES: tuple[tuple[str, Family], ...] = (
    (r"310", "310"),
    (r"310B[0-9]", "310B"),
    (r"310P[0-9]", "310P"),
    # Exactly 910B is the first generation: the second has a digit after the letter.
    (r"910B[0-9]C?", "910B"),
    (r"910(A|B|Pro[AB]|PremiumA)?", "910"),
    (r"Ascend910", "A3"),
)


@dataclass(frozen=True)
class Defaults:
    """What an idle chip shows: megabytes are (used, total), temperature in degrees Celsius, power in watts."""

    memory: tuple[int, int]
    hbm: tuple[int, int] = (0, 0)
    hugepages: tuple[int, int] = (0, 0)
    power: float | None = None
    temperature: int = 40
    pcie: bool = True


# From published captures of idle boards: github.com/Syllo/nvtop issue 421 (310P3), 1Panel issue 9472 (910B4) and
# hiascend.com, Atlas 200I A2 25.2.0 (310B1).
_DEFAULTS: dict[str, Defaults] = {
    "310": Defaults((577, 7759), hugepages=(0, 969), power=12.8, temperature=61),
    "310B1": Defaults((4972, 10810), hugepages=(15, 1304), power=9.1, temperature=38, pcie=False),
    "310B4": Defaults((1797, 3513), hugepages=(15, 15), power=7.2, temperature=37, pcie=False),
    "310B": Defaults((3628, 15609), hugepages=(15, 15), power=8.0, temperature=45, pcie=False),
    "310P": Defaults((1849, 21525), power=16.0),
    "910": Defaults((1324, 15137), hbm=(0, 32768), power=68.0),
    "910B4": Defaults((0, 0), hbm=(2835, 32768), power=88.2, temperature=30),
    "910B": Defaults((0, 0), hbm=(2835, 65536), power=92.0, temperature=35),
    "A3": Defaults((0, 0), hbm=(3133, 65536), power=162.8, temperature=37),
}


def family_of(name: str) -> Family | None:
    """The family of the chip that ``npu-smi info`` calls ``name``; None for a name that no chip has."""
    return next((family for pattern, family in _NAMES if re.fullmatch(pattern, name)), None)


def defaults(name: str, kind: Family) -> Defaults:
    return _DEFAULTS.get(name) or _DEFAULTS[kind]


def has_hbm(kind: Family) -> bool:
    return kind in ("910", "910B", "A3")


def soc_version(name: str, npu_name: str = "") -> str:
    """What ``atc --soc_version`` wants for a chip: for an A3, whose name says little, with the NPU's name behind it."""
    if family_of(name) == "A3":
        return f"{name}_{npu_name}" if npu_name else name
    return f"Ascend{name}"


def known_soc(version: str) -> bool:
    """Whether a compiler knows this ``--soc_version``."""
    chip, _, npu_name = version.removeprefix("Ascend").partition("_")
    if not version.startswith("Ascend"):
        return False
    if npu_name:
        return chip == "910" and re.fullmatch(r"[0-9A-Za-z]{1,8}", npu_name) is not None
    return family_of(chip) not in (None, "A3")
