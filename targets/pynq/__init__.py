"""Boards with the VTA accelerator in their FPGA, under PYNQ's image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from targets.vta.target import VTATarget

if TYPE_CHECKING:
    from targets.vta.boards import Board
    from targets.vta.config import VtaConfig
    from targets.vta.device import VTADevice
    from targets.vta.driver import VtaDriver


class _Board(VTATarget):
    """A real board; its device half drives the accelerator through the image's own Python."""

    def device(self) -> VTADevice:
        from targets.vta import boards
        from targets.vta.device import VTADevice

        return VTADevice(boards.find(self.board), _open)


def _open(config: VtaConfig, board: Board, bitstream: Path | None, sha256: str) -> VtaDriver:
    from targets.pynq.driver import PynqDriver
    from targets.vta.driver import DriverError

    if bitstream is None:
        raise DriverError("the bundle has no bitstream", code="no-bitstream")
    return PynqDriver(config, board, bitstream, sha256=sha256)


class PYNQ(_Board):
    name = "pynq"
    description = "PYNQ-Z1 and Z2: VTA in a Zynq-7020, through TVM"
    board = "pynq"


class Ultra96(_Board):
    name = "ultra96"
    description = "Ultra96 V1 and V2: VTA in a Zynq UltraScale+, through TVM"
    board = "ultra96"
