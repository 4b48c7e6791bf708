"""The instruction set executed word for word, one micro-op at a time and in Python: what the simulator is held against.

Written from the documentation of the two originals and sharing nothing with the compiled simulator. Streams execute
in order; nothing is checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from targets.vta.config import VtaConfig
from targets.vta.isa import AluOp, Memory, Opcode, decode_uops

if TYPE_CHECKING:
    from targets.vta.isa import Table

Array = np.ndarray[Any, np.dtype[Any]]


class Reference:
    def __init__(self, config: VtaConfig, hardware: bool) -> None:
        self.config, self.hardware = config, hardware
        self.uop = np.zeros(config.uop_depth, np.uint32)
        self.inp = np.zeros((config.inp_depth, config.batch, config.block), np.int64)
        self.wgt = np.zeros((config.wgt_depth, config.block, config.block), np.int64)
        self.acc = np.zeros((config.acc_depth, config.batch, config.block), np.int32)
        self.out = np.zeros((config.acc_depth, config.batch, config.block), np.int8)

    def run(self, table: Table, dram: Array) -> None:
        for row in table:
            if row["opcode"] == Opcode.LOAD:
                self.load(row, dram)
            elif row["opcode"] == Opcode.STORE:
                self.store(row, dram)
            elif row["opcode"] == Opcode.GEMM:
                self.gemm(row)
            elif row["opcode"] == Opcode.ALU:
                self.alu(row)

    def element(self, memory: int, index: int, dram: Array) -> Array:
        config = self.config
        if memory == Memory.UOP:
            return dram[4 * index : 4 * index + 4].view(np.uint32)[0]
        if memory == Memory.WGT:
            size = config.block * config.block
            return dram[size * index : size * (index + 1)].view(np.int8).reshape(config.block, config.block)
        size = config.batch * config.block
        if memory == Memory.ACC:
            data = dram[4 * size * index : 4 * size * (index + 1)].view(np.int32)
        else:
            data = dram[size * index : size * (index + 1)].view(np.int8)
        return data.reshape(config.batch, config.block)

    def load(self, row: Any, dram: Array) -> None:
        memory = int(row["memory"])
        target = {Memory.UOP: self.uop, Memory.WGT: self.wgt, Memory.INP: self.inp}.get(Memory(memory), self.acc)
        y_size, pads = int(row["y_size"]), [int(row[name]) for name in ("y_pad_0", "y_pad_1", "x_pad_0", "x_pad_1")]
        if self.hardware and memory == Memory.UOP:
            y_size, pads = 1, [0, 0, 0, 0]
        if self.hardware and memory == Memory.WGT:
            pads = [0, 0, 0, 0]
        if not self.hardware and row["x_size"] == 0:
            return
        at = int(row["sram_base"])
        for y in range(-pads[0], y_size + pads[1]):
            for x in range(-pads[2], int(row["x_size"]) + pads[3]):
                inside = 0 <= y < y_size and 0 <= x < row["x_size"]
                source = int(row["dram_base"]) + y * int(row["x_stride"]) + x
                target[at] = self.element(memory, source, dram) if inside else 0
                at += 1

    def store(self, row: Any, dram: Array) -> None:
        size = self.config.batch * self.config.block
        at = int(row["sram_base"])
        for y in range(int(row["y_size"])):
            for x in range(int(row["x_size"])):
                place = (int(row["dram_base"]) + y * int(row["x_stride"]) + x) * size
                value = self.out[at] if self.hardware else self.acc[at].astype(np.int8)
                dram[place : place + size] = value.reshape(-1).view(np.uint8)
                at += 1

    def indices(self, row: Any) -> Any:
        uops = decode_uops(self.uop, self.config)
        for outer in range(int(row["iter_out"])):
            for inner in range(int(row["iter_in"])):
                for at in range(int(row["uop_bgn"]), int(row["uop_end"])):
                    yield [
                        int(uops[at, column] + outer * row[f"{name}_factor_out"] + inner * row[f"{name}_factor_in"])
                        for column, name in enumerate(("dst", "src", "wgt"))
                    ]

    def gemm(self, row: Any) -> None:
        for d, s, w in self.indices(row):
            if row["reset"] and not self.hardware:
                self.acc[d] = 0
                continue
            total = (self.acc[d] + self.inp[s] @ self.wgt[w].T).astype(np.int32)
            self.acc[d] = 0 if row["reset"] else total
            self.out[d] = total.astype(np.int8)

    def alu(self, row: Any) -> None:
        for d, s, _ in self.indices(row):
            x = self.acc[d].astype(np.int64)
            y = np.full_like(x, row["imm"]) if row["use_imm"] else self.acc[s].astype(np.int64)
            amount = ((y & 31) ^ 16) - 16 if self.hardware else y
            result = {
                AluOp.MIN: lambda x, y, _: np.minimum(x, y),
                AluOp.MAX: lambda x, y, _: np.maximum(x, y),
                AluOp.ADD: lambda x, y, _: x + y,
                AluOp.SHR: lambda x, _, n: np.where(n < 0, x << np.maximum(-n, 0), x >> np.maximum(n, 0)),
                AluOp.MUL: lambda x, y, _: x * y,
            }[AluOp(int(row["alu_op"]))](x, y, amount)
            self.acc[d] = result.astype(np.int32)
            self.out[d] = self.acc[d].astype(np.int8)
