"""The simulator computes what the instruction set says: random streams against a reference in plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vta_reference import Reference

from targets.vta import isa
from targets.vta.config import DEFAULT, PUBLISHED, VtaConfig
from targets.vta.isa import AluOp, Memory, Opcode
from targets.vta.simulator import Semantics, Simulator

BATCHED = PUBLISHED["4x8_i8w8a32_15_16_16_18"]
#: Bytes that the streams use: random ones to read, then room to write.
SIZE = 1 << 17
FIRST = 1 << 14


def uop_image(config: VtaConfig, count: int, seed: int) -> bytes:
    """Micro-ops whose indices leave room for the loops of the streams below."""
    rng = np.random.default_rng(seed)
    return isa.encode_uops(rng.integers(0, 24, (count, 3)), config).tobytes()


@st.composite
def instructions(draw: Any, config: VtaConfig, hardware: bool) -> isa.Table:
    small = st.integers(0, 3)
    rows = [
        isa.row(Opcode.LOAD, memory=Memory.UOP, dram_base=4096 // 4, y_size=1, x_size=32, x_stride=32),
        isa.row(Opcode.LOAD, memory=Memory.INP, dram_base=FIRST // config.inp_bytes, y_size=1, x_size=64),
        isa.row(Opcode.LOAD, memory=Memory.WGT, dram_base=FIRST // config.wgt_bytes, y_size=1, x_size=64),
        isa.row(Opcode.LOAD, memory=Memory.ACC, dram_base=FIRST // config.acc_bytes, y_size=1, x_size=64),
        isa.row(Opcode.ALU, uop_bgn=0, uop_end=32, iter_out=1, iter_in=1, alu_op=AluOp.MAX, use_imm=1, imm=-999),
    ]
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["load", "store", "gemm", "gemm", "alu", "alu"]))
        if kind == "load":
            memories = [Memory.INP, Memory.WGT, Memory.ACC, Memory.UOP] + ([] if hardware else [Memory.ACC_8BIT])
            memory = draw(st.sampled_from(memories))
            base = 4096 // 4 if memory == Memory.UOP else FIRST // isa.element_bytes(config, memory)
            rows.append(
                isa.row(
                    Opcode.LOAD,
                    memory=memory,
                    sram_base=draw(st.integers(0, 40)),
                    dram_base=base + draw(small),
                    y_size=draw(small),
                    x_size=draw(small),
                    x_stride=draw(st.integers(0, 5)),
                    **{name: draw(st.integers(0, 2)) for name in ("y_pad_0", "y_pad_1", "x_pad_0", "x_pad_1")},
                )
            )
        elif kind == "store":
            rows.append(
                isa.row(
                    Opcode.STORE,
                    memory=Memory.OUT,
                    sram_base=draw(st.integers(0, 40)),
                    dram_base=SIZE // 2 // config.out_bytes + draw(st.integers(0, 50)),
                    y_size=draw(small),
                    x_size=draw(small),
                    x_stride=draw(st.integers(0, 5)),
                )
            )
        else:
            begin = draw(st.integers(0, 20))
            fields = {
                "uop_bgn": begin,
                "uop_end": begin + draw(st.integers(0, 8)),
                "iter_out": draw(st.integers(0, 3)),
                "iter_in": draw(st.integers(0, 6)),
                **{f"{name}_factor_{loop}": draw(small) for name in ("dst", "src") for loop in ("out", "in")},
            }
            if kind == "gemm":
                factors = {f"wgt_factor_{loop}": draw(st.sampled_from([0, 0, 1, 2])) for loop in ("out", "in")}
                rows.append(isa.row(Opcode.GEMM, reset=draw(st.sampled_from([0, 0, 1])), **fields, **factors))
            else:
                operations = [AluOp.MIN, AluOp.MAX, AluOp.ADD, AluOp.SHR] + ([] if hardware else [AluOp.MUL])
                operation = draw(st.sampled_from(operations))
                # what registers hold is no shift amount that the original simulator defines
                use_imm = 1 if operation == AluOp.SHR and not hardware else draw(st.integers(0, 1))
                limit = 31 if operation == AluOp.SHR and not hardware else 32767
                imm = draw(st.integers(-limit, limit))
                rows.append(isa.row(Opcode.ALU, alu_op=operation, use_imm=use_imm, imm=imm, **fields))
    end = SIZE * 3 // 4 // config.out_bytes
    rows.append(isa.row(Opcode.STORE, memory=Memory.OUT, dram_base=end, y_size=1, x_size=64))
    rows.append(isa.row(Opcode.FINISH))
    return isa.table(rows)


@pytest.mark.parametrize("semantics", ["hw", "fsim"])
@pytest.mark.parametrize("config", [DEFAULT, BATCHED], ids=lambda config: config.name)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 1 << 32))
def test_streams(config: VtaConfig, semantics: Semantics, data: st.DataObject, seed: int) -> None:
    table = data.draw(instructions(config, semantics == "hw"))
    memory = np.random.default_rng(seed).integers(0, 256, SIZE, np.uint8)
    uops = uop_image(config, 40, seed)
    memory[4096 : 4096 + len(uops)] = np.frombuffer(uops, np.uint8)
    expected = memory.copy()
    Reference(config, semantics == "hw").run(table, expected)
    Simulator(config, semantics=semantics).run(table, memory)
    np.testing.assert_array_equal(memory, expected)


@pytest.mark.parametrize("log_block", [2, 5])
def test_other_block_sizes(log_block: int) -> None:
    """A matrix product with weights that change along the loops, on blocks that no published configuration has."""
    config = VtaConfig(
        log_batch=1, log_block=log_block, log_inp_buff_size=12, log_wgt_buff_size=15, log_acc_buff_size=14
    ).check()
    memory = np.random.default_rng(log_block).integers(0, 256, SIZE, np.uint8)
    uops = isa.encode_uops(np.array([[0, 0, 0], [3, 1, 2]]), config).tobytes()
    memory[4096 : 4096 + len(uops)] = np.frombuffer(uops, np.uint8)
    loops = {"uop_end": 2, "iter_out": 2, "iter_in": 5, "dst_factor_out": 8, "dst_factor_in": 1, "src_factor_in": 1}
    table = isa.table(
        [
            isa.row(Opcode.LOAD, memory=Memory.UOP, dram_base=1024, y_size=1, x_size=2),
            isa.row(Opcode.LOAD, memory=Memory.INP, dram_base=FIRST // config.inp_bytes, y_size=1, x_size=16),
            isa.row(Opcode.LOAD, memory=Memory.WGT, dram_base=FIRST // config.wgt_bytes, y_size=1, x_size=16),
            isa.row(Opcode.GEMM, **loops),
            isa.row(Opcode.GEMM, wgt_factor_in=1, **loops),
            isa.row(Opcode.ALU, alu_op=AluOp.SHR, use_imm=1, imm=7, **loops),
            isa.row(Opcode.STORE, memory=Memory.OUT, dram_base=SIZE // 2 // config.out_bytes, y_size=1, x_size=16),
            isa.row(Opcode.FINISH),
        ]
    )
    expected = memory.copy()
    Reference(config, True).run(table, expected)
    assert not np.array_equal(memory, expected)
    Simulator(config).run(table, memory)
    np.testing.assert_array_equal(memory, expected)


def test_sums_wrap() -> None:
    memory = np.zeros(SIZE, np.uint8)
    config = DEFAULT
    memory[FIRST : FIRST + 64].view(np.int32)[:] = 2**31 - 1
    memory[4096:4100].view(np.uint32)[:] = 0
    memory[8192:8448].view(np.int8)[:] = 127
    table = isa.table(
        [
            isa.row(Opcode.LOAD, memory=Memory.UOP, dram_base=1024, y_size=1, x_size=1),
            isa.row(Opcode.LOAD, memory=Memory.ACC, dram_base=FIRST // 64, y_size=1, x_size=1),
            isa.row(Opcode.LOAD, memory=Memory.INP, dram_base=8192 // 16, y_size=1, x_size=1),
            isa.row(Opcode.LOAD, memory=Memory.WGT, dram_base=8192 // 256, y_size=1, x_size=1),
            isa.row(Opcode.GEMM, uop_end=1, iter_out=1, iter_in=1),
            isa.row(Opcode.ALU, uop_end=1, iter_out=1, iter_in=1, alu_op=AluOp.SHR, use_imm=1, imm=15),
            isa.row(Opcode.ALU, uop_end=1, iter_out=1, iter_in=1, alu_op=AluOp.SHR, use_imm=1, imm=9),
            isa.row(Opcode.STORE, memory=Memory.OUT, dram_base=SIZE // 2 // 16, y_size=1, x_size=1),
            isa.row(Opcode.FINISH),
        ]
    )
    Simulator(config).run(table, memory)
    wrapped = (2**31 - 1 + 16 * 127 * 127) - 2**32
    assert set(memory[SIZE // 2 : SIZE // 2 + 16].view(np.int8).tolist()) == {wrapped >> 24}
