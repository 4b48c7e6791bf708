"""The seven counters of TVM's VTA simulator, by its names, for any span of a program."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from targets.vta.config import VtaConfig
from targets.vta.isa import Memory, Opcode, element_bytes

if TYPE_CHECKING:
    from targets.vta.isa import Table

NAMES = (
    *("inp_load_nbytes", "wgt_load_nbytes", "acc_load_nbytes", "uop_load_nbytes", "out_store_nbytes"),
    *("gemm_counter", "alu_counter"),
)


class Counters(msgspec.Struct, frozen=True):
    """Bytes moved by kind, micro-ops executed by kind.

    Counted as the original functional simulator does: padding and strides move nothing, a GEMM that resets counts
    nothing, an 8-bit ACC load counts as a 32-bit one (``src/sim/sim_driver.cc`` of apache/tvm-vta).
    """

    inp_load_nbytes: int = 0
    wgt_load_nbytes: int = 0
    acc_load_nbytes: int = 0
    uop_load_nbytes: int = 0
    out_store_nbytes: int = 0
    gemm_counter: int = 0
    alu_counter: int = 0

    @property
    def bytes_moved(self) -> int:
        return (
            self.inp_load_nbytes
            + self.wgt_load_nbytes
            + self.acc_load_nbytes
            + self.uop_load_nbytes
            + self.out_store_nbytes
        )

    def __add__(self, other: Counters) -> Counters:
        return Counters(*(getattr(self, name) + getattr(other, name) for name in NAMES))

    def to_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in NAMES}


def count(program: Table, config: VtaConfig) -> Counters:
    """The counters of one execution of these instructions."""

    def moved(opcode: Opcode, *memories: Memory) -> int:
        chosen = program[(program["opcode"] == opcode) & np.isin(program["memory"], memories)]
        return int((chosen["x_size"] * chosen["y_size"]).sum()) * element_bytes(config, memories[0])

    def executed(opcode: Opcode) -> int:
        chosen = program[(program["opcode"] == opcode) & ((opcode == Opcode.ALU) | (program["reset"] == 0))]
        return int((chosen["iter_out"] * chosen["iter_in"] * (chosen["uop_end"] - chosen["uop_bgn"])).sum())

    return Counters(
        inp_load_nbytes=moved(Opcode.LOAD, Memory.INP),
        wgt_load_nbytes=moved(Opcode.LOAD, Memory.WGT),
        acc_load_nbytes=moved(Opcode.LOAD, Memory.ACC, Memory.ACC_8BIT),
        uop_load_nbytes=moved(Opcode.LOAD, Memory.UOP),
        out_store_nbytes=moved(Opcode.STORE, Memory.OUT),
        gemm_counter=executed(Opcode.GEMM),
        alu_counter=executed(Opcode.ALU),
    )
