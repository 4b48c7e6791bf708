"""The disassembler: each field has its place in the text, and each token its two ends."""

from __future__ import annotations

import re

import made_vta_program
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.vta import isa
from targets.vta.config import DEFAULT
from targets.vta.disasm import disassemble, operands, title
from targets.vta.isa import AluOp, Memory, Opcode

RELU = """\
; relu (conv2d)
0  compute  LOAD UOP       [0..0]        <- 0x00004000 1 x 1
;   uop 0: dst 0 src 0 wgt 0
1  load     LOAD INP       [0..15]       <- 0x00001000 1 x 16
2  load     LOAD WGT       [0..0]        <- 0x00003000 1 x 1 > 4 l2g
3  compute  GEMM reset     uop [0..0] x 1 x 16        acc +0 +1
4  compute  GEMM           uop [0..0] x 1 x 16        acc +0 +1, inp +0 +1, wgt +0 +0 < 2 l2g
5  compute  ALU MAX        uop [0..0] x 1 x 16        acc +0 +1: max 0 > 6 g2s
6  store    STORE          [0..15]       -> 0x00002000 1 x 16 < 5 g2s > 7 s2g
7  compute  FINISH < 6 s2g"""


def test_a_whole_program() -> None:
    program = made_vta_program.relu()
    lines = list(disassemble(program.table, program.config, program.image(), program.layers))
    assert [" ".join(line.split()) for line in lines] == [" ".join(line.split()) for line in RELU.splitlines()]
    ends = [re.search(r" ([<>] \d+ \w\w\w)", line) for line in lines]
    assert len({end.start() for end in ends if end}) == 1  # aligned, whatever comes before


def only(**fields: int) -> np.void:
    opcode = Opcode(fields.pop("opcode"))
    row: np.void = isa.table([isa.row(opcode, **fields)])[0]
    return row


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (
            only(opcode=0, memory=2, sram_base=7, dram_base=256, y_size=2, x_size=3, x_stride=9, y_pad_0=1, x_pad_1=2),
            "LOAD INP [7..21] <- 0x00001000 2 x 3 every 9 pad top 1 right 2",
        ),
        (only(opcode=0, memory=0, pop_prev=1), "LOAD UOP nothing"),
        (only(opcode=0, memory=6, x_size=1, y_size=1), "LOAD ?6 [0..0] <- 0x00000000 1 x 1"),
        (only(opcode=4, alu_op=3, use_imm=1, imm=-4, uop_end=2), "ALU SHR uop [0..1] x 0 x 0 acc +0 +0: >> -4"),
        (only(opcode=4, alu_op=2, src_factor_in=5, iter_in=1), "ALU ADD uop none x 0 x 1 acc +0 +0, acc +0 +5"),
        (only(opcode=4, alu_op=7, use_imm=1, imm=1, uop_end=1), "ALU ?7 uop [0..0] x 0 x 0 acc +0 +0: ? 1"),
        (only(opcode=3), "FINISH"),
    ],
)  # fmt: skip
def test_operands(row: np.void, text: str) -> None:
    assert " ".join(f"{title(row)} {operands(row, DEFAULT)}".split()) == text


def test_tokens_that_lead_nowhere_say_so() -> None:
    table = isa.table(
        [
            isa.row(Opcode.LOAD, memory=Memory.INP, push_next=1, pop_prev=1),
            isa.row(Opcode.GEMM, pop_prev=1, pop_next=1, push_prev=1),
        ]
    )
    first, second = disassemble(table, DEFAULT)
    assert first.endswith("< ?pop_prev  > 1 l2g")
    assert second.endswith("< 0 l2g, nobody s2g  > nobody g2l")


@given(st.binary(min_size=16, max_size=160).map(lambda data: data[: len(data) // 16 * 16]))
def test_any_stream_that_can_be_decoded_has_a_line_an_instruction(data: bytes) -> None:
    opcodes = [data[at] & 7 for at in range(0, len(data), 16)]
    if max(opcodes) > max(Opcode):
        return
    table = isa.decode(data, DEFAULT)
    lines = [line for line in disassemble(table, DEFAULT) if not line.startswith(";")]
    assert [int(line.split()[0]) for line in lines] == list(range(len(table)))
    assert all(AluOp.MAX.name in line for line, row in zip(lines, table, strict=True) if _is_max(row))


def _is_max(row: np.void) -> bool:
    return bool(row["opcode"] == Opcode.ALU and row["alu_op"] == AluOp.MAX)
