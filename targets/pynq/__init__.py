"""Boards with the VTA accelerator in their FPGA, under PYNQ's image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from targets.vta.target import VTATarget

if TYPE_CHECKING:
    from targets.vta.device import VTADevice


class _Board(VTATarget):
    """A real board; its device half drives the accelerator through the image's own Python."""

    def device(self) -> VTADevice:
        from targets.pynq.driver import open_board
        from targets.vta import boards
        from targets.vta.device import VTADevice

        return VTADevice(boards.find(self.board), open_board)


class PYNQ(_Board):
    name = "pynq"
    description = "PYNQ-Z1 and Z2: VTA in a Zynq-7020, through TVM"
    board = "pynq"


class Ultra96(_Board):
    name = "ultra96"
    description = "Ultra96 V1 and V2: VTA in a Zynq UltraScale+, through TVM"
    board = "ultra96"
