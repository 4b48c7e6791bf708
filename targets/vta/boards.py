"""The boards that VTA was built for: the facts that a driver, a bitstream check and the cycle model share.

Source: ``config/``, ``hardware`` and ``src/{pynq,de10nano}`` of apache/tvm-vta, revision d4a15f6; the IDCODE from
the published bitstreams.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from targets.base import FleetError


class Board(msgspec.Struct, frozen=True):
    """One kind of board, and the design that VTA's sources build for it."""

    name: str
    description: str
    #: The device as field ``b`` of a ``.bit`` file starts, without ``xc``, package and speed; empty where none is used.
    device: str
    #: The device's JTAG id without its revision (bits 31-28); None where it is not known.
    idcode: int | None
    #: As ``os.uname().machine`` says it; empty for a simulation, which runs on whatever machine there is.
    machine: Literal["armv7l", "aarch64", ""]
    clock_mhz: float
    #: Width of the accelerator's way to memory.
    dma_bits: int
    #: Bytes in the longest burst on that way.
    burst_bytes: int
    #: Whether that way goes through the processor's caches, so that neither side needs to flush.
    coherent: bool
    #: The port it goes through; empty where there is none.
    port: str
    #: Physical addresses from 0 to before this can be reached through the port.
    address_limit: int
    #: Physical addresses of the register windows of fetch, load, compute and store, 4096 bytes each. The Chisel design
    #: of the DE10-Nano has one window for all.
    registers: tuple[int, ...]
    #: Instruction layout of the newest published bitstream, else of what the current sources build.
    hw_ver: str


_ZYNQMP_REGISTERS = (0xA0000000, 0xA0001000, 0xA0002000, 0xA0003000)

BOARDS = {
    board.name: board
    for board in (
        Board(
            name="pynq",
            description="PYNQ-Z1 and PYNQ-Z2, Zynq-7020",
            device="7z020",
            idcode=0x3727093,
            machine="armv7l",
            clock_mhz=100,
            dma_bits=64,
            burst_bytes=128,
            coherent=True,
            port="S_AXI_ACP",
            address_limit=1 << 30,
            registers=(0x43C00000, 0x43C01000, 0x43C02000, 0x43C03000),
            hw_ver="0.0.2",
        ),
        Board(
            name="ultra96",
            description="Ultra96 V1 and V2, Zynq UltraScale+ ZU3EG",
            device="zu3eg",
            idcode=None,
            machine="aarch64",
            clock_mhz=333,
            dma_bits=128,
            burst_bytes=256,
            coherent=True,
            port="S_AXI_HPC0",
            address_limit=1 << 31,
            registers=_ZYNQMP_REGISTERS,
            hw_ver="0.0.1",
        ),
        Board(
            name="zcu104",
            description="ZCU104, Zynq UltraScale+ ZU7EV",
            device="zu7ev",
            idcode=None,
            machine="aarch64",
            clock_mhz=333,
            dma_bits=128,
            burst_bytes=256,
            coherent=True,
            port="S_AXI_HPC0",
            address_limit=1 << 31,
            registers=_ZYNQMP_REGISTERS,
            hw_ver="0.0.2",
        ),
        Board(
            name="de10nano",
            description="DE10-Nano, Cyclone V 5CSEBA6",
            device="",
            idcode=None,
            machine="armv7l",
            clock_mhz=100,
            dma_bits=64,
            burst_bytes=128,
            coherent=True,
            port="f2h_axi",
            address_limit=1 << 30,
            registers=(0xFF220000,),
            hw_ver="0.0.1",
        ),
        Board(
            name="sim",
            description="No board: the figures of a PYNQ, on this machine",
            device="",
            idcode=None,
            machine="",
            clock_mhz=100,
            dma_bits=64,
            burst_bytes=128,
            coherent=True,
            port="",
            address_limit=1 << 31,
            registers=(),
            hw_ver="0.0.2",
        ),
    )
}


def find(name: str) -> Board:
    """The board called ``name``. Raises :class:`FleetError` that lists what there is (``unknown-board``)."""
    try:
        return BOARDS[name]
    except KeyError:
        raise FleetError(
            f"there is no VTA board '{name}'", code="unknown-board", hint=f"known boards: {', '.join(BOARDS)}"
        ) from None
