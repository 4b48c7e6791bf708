"""What can be asked of a build for a board with VTA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from targets.base import FleetError, Option, check_options
from targets.cpu.host import check_batch
from targets.cpu.machine import MACHINES, Machine, Processor, machine
from targets.vta import config as configurations
from targets.vta.boards import Board
from targets.vta.config import VtaConfig

KINDS: dict[str, type] = {
    "config": str,
    "hw_ver": str,
    "activations": str,
    "weights": str,
    "first_conv": bool,
    "dense": bool,
    "pools": str,
    "batch": int,
    "machine": str,
    "mcpu": str,
    "bitstream": str,
    "bitstream_sha256": str,
}
#: What an option may say.
CHOICES = {"activations": ("mse", "minmax"), "weights": ("tensor", "block")}


@dataclass(frozen=True, slots=True)
class VTAOptions:
    """Options of a build, checked; those of `VTAHost` in other forms."""

    config: VtaConfig
    activations: str
    weights: str
    first_conv: bool
    dense: bool
    pools: tuple[str, str] | None
    batch: int
    machine: Machine
    processor: Processor
    #: A file with the bitstream that goes with the bundle; None for the fetched one, or none.
    bitstream: Path | None
    bitstream_sha256: str


def resolve(options: Mapping[str, Option], board: Board) -> VTAOptions:
    """Raises :class:`FleetError`: ``bad-option``, ``bad-vta-config``."""
    given = {name: value for name, value in options.items() if name != "calibration"}
    check_options(given, KINDS, board.name)
    check_batch(given)
    for name, choices in CHOICES.items():
        if given.get(name, choices[0]) not in choices:
            raise FleetError(
                f"option '{name}' cannot be '{given[name]}'", code="bad-option", hint=f"it is {' or '.join(choices)}"
            )
    on = _machine(str(given.get("machine", "")), board)
    bitstream = str(given.get("bitstream", ""))
    return VTAOptions(
        config=_config(str(given.get("config", "")), str(given.get("hw_ver", "")), board),
        activations=str(given.get("activations", "mse")),
        weights=str(given.get("weights", "tensor")),
        first_conv=bool(given.get("first_conv", False)),
        dense=bool(given.get("dense", False)),
        pools=_pools(str(given.get("pools", ""))),
        batch=int(given.get("batch", 0)),
        machine=on,
        processor=on.processor(str(given.get("mcpu", ""))),
        bitstream=Path(bitstream) if bitstream else None,
        bitstream_sha256=str(given.get("bitstream_sha256", "")).lower(),
    )


def _config(name: str, hw_ver: str, board: Board) -> VtaConfig:
    """The configuration named; without a layout in the name, that of the board's newest bitstream."""
    name = name or configurations.DEFAULT.name
    if hw_ver and "@" in name:
        raise FleetError(f"options 'config' ({name}) and 'hw_ver' both name the layout", code="bad-option")
    if name in configurations.PUBLISHED:
        name = f"{name}@{hw_ver or board.hw_ver}"
        return configurations.load(name)
    config = configurations.load(name)
    if hw_ver and hw_ver != config.hw_ver:
        raise FleetError(
            f"option 'hw_ver' is {hw_ver}, and {name} is for {config.hw_ver}",
            code="bad-option",
            hint="a configuration file names its layout as HW_VER",
        )
    return config


def _pools(text: str) -> tuple[str, str] | None:
    if not text:
        return None
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or not all(names):
        raise FleetError(
            f"option 'pools' cannot be '{text}'",
            code="bad-option",
            hint="two operators, where the accelerator's part starts and stops: pools=max_pool2d,adaptive_avg_pool2d",
        )
    return names[0], names[1]


def _machine(name: str, board: Board) -> Machine:
    """The board's own machine; a simulation runs where it is built if nothing else is said."""
    name = name or board.machine or machine()
    if name not in MACHINES:
        raise FleetError(
            f"nothing can be built for the machine '{name}'",
            code="bad-option",
            hint=f"option 'machine' is one of: {', '.join(MACHINES)}",
        )
    return MACHINES[name]
