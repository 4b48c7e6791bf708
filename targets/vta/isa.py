"""The instruction set: fields, both layouts, encoding and decoding, the micro-op.

A program is a table: one row an instruction, one column a field (:data:`DTYPE`), fields that an instruction does not
have are 0. Source: ``include/vta/hw_spec.h`` of apache/tvm-vta before and after 5bd9c6a (HW_VER 0.0.1 and 0.0.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from targets.base import FleetError
from targets.vta.config import INSN_BYTES, VtaConfig

if TYPE_CHECKING:
    import numpy.typing as npt

    Table = npt.NDArray[np.void]


class Opcode(IntEnum):
    LOAD = 0
    STORE = 1
    GEMM = 2
    FINISH = 3
    ALU = 4


class Memory(IntEnum):
    UOP = 0
    WGT = 1
    INP = 2
    ACC = 3
    OUT = 4
    #: int8 in DRAM, int32 on chip. Only the original functional simulator has it.
    ACC_8BIT = 5


class AluOp(IntEnum):
    MIN = 0
    MAX = 1
    ADD = 2
    SHR = 3
    #: Only the original functional simulator has it.
    MUL = 4


class Module(IntEnum):
    """The three that execute; fetch only hands out."""

    LOAD = 0
    COMPUTE = 1
    STORE = 2


DEPENDENCIES = ("pop_prev", "pop_next", "push_prev", "push_next")
MEMORY_FIELDS = (
    *("memory", "sram_base", "dram_base", "y_size", "x_size", "x_stride"),
    *("y_pad_0", "y_pad_1", "x_pad_0", "x_pad_1"),
)
LOOP_FIELDS = (
    *("reset", "uop_bgn", "uop_end", "iter_out", "iter_in"),
    *("dst_factor_out", "dst_factor_in", "src_factor_out", "src_factor_in"),
)
GEMM_FIELDS = (*LOOP_FIELDS, "wgt_factor_out", "wgt_factor_in")
ALU_FIELDS = (*LOOP_FIELDS, "alu_op", "use_imm", "imm")
#: Every column. int64 holds each field and every sum of them.
COLUMNS = ("opcode", *DEPENDENCIES, *MEMORY_FIELDS, *GEMM_FIELDS, "alu_op", "use_imm", "imm")
DTYPE = np.dtype([(name, np.int64) for name in COLUMNS])

_FIELDS_OF = {
    Opcode.LOAD: MEMORY_FIELDS,
    Opcode.STORE: MEMORY_FIELDS,
    Opcode.GEMM: GEMM_FIELDS,
    Opcode.ALU: ALU_FIELDS,
    Opcode.FINISH: (),
}
_SIGNED = {"imm"}


@lru_cache(maxsize=16)
def layout(config: VtaConfig, opcode: Opcode) -> Mapping[str, tuple[int, int]]:
    """``{field: (lowest bit, width)}`` of an instruction of 128 bits; no field crosses bit 64."""
    acc, inp, wgt, uop = config.log2_acc_depth, config.log2_inp_depth, config.log2_wgt_depth, config.log2_uop_depth
    old = config.hw_ver == "0.0.1"
    low: list[tuple[str, int]] = [("opcode", 3), *((name, 1) for name in DEPENDENCIES)]
    high: list[tuple[str, int]] = []
    if opcode in (Opcode.LOAD, Opcode.STORE):
        low += [("memory", 2 if old else 3), ("sram_base", 16), ("dram_base", 32)]
        high = [(name, 16) for name in ("y_size", "x_size", "x_stride")]
        high += [(name, 4) for name in ("y_pad_0", "y_pad_1", "x_pad_0", "x_pad_1")]
    elif opcode in (Opcode.GEMM, Opcode.ALU):
        low += [("reset", 1), ("uop_bgn", uop), ("uop_end", uop + 1), ("iter_out", 14), ("iter_in", 14)]
        high = [("dst_factor_out", acc), ("dst_factor_in", acc), ("src_factor_out", inp), ("src_factor_in", inp)]
        if opcode == Opcode.GEMM:
            high += [("wgt_factor_out", wgt), ("wgt_factor_in", wgt)]
        else:
            high += [("alu_op", 2 if old else 3), ("use_imm", 1), ("imm", 16)]
    places = {}
    for start, fields in ((0, low), (64, high)):
        for name, width in fields:
            places[name] = (start, width)
            start += width
    return places


def module_of(opcode: int, memory: int) -> Module:
    """Which module executes an instruction."""
    if opcode == Opcode.STORE:
        return Module.STORE
    if opcode == Opcode.LOAD and memory in (Memory.WGT, Memory.INP):
        return Module.LOAD
    return Module.COMPUTE


def modules(table: Table) -> npt.NDArray[np.int64]:
    """:func:`module_of` for each row."""
    found = np.full(len(table), int(Module.COMPUTE), np.int64)
    load = (table["opcode"] == Opcode.LOAD) & ((table["memory"] == Memory.WGT) | (table["memory"] == Memory.INP))
    found[load] = Module.LOAD
    found[table["opcode"] == Opcode.STORE] = Module.STORE
    return found


def row(opcode: Opcode, **fields: int) -> tuple[int, ...]:
    """One instruction as a row; fields that are not given are 0."""
    values = dict.fromkeys(COLUMNS, 0)
    values["opcode"] = opcode
    for name, value in fields.items():
        if name not in values:
            raise KeyError(name)
        values[name] = value
    return tuple(values[name] for name in COLUMNS)


def table(rows: list[tuple[int, ...]]) -> Table:
    return np.array(rows, dtype=DTYPE)


def encode(program: Table, config: VtaConfig) -> bytes:
    """16 bytes an instruction.

    Raises:
        FleetError: ``bad-vta-field``; names the instruction, the field, its value and the largest that fits.
    """
    words = np.zeros((len(program), 2), np.uint64)
    for code in np.unique(program["opcode"]):
        if code not in _FIELDS_OF:
            at = int(np.flatnonzero(program["opcode"] == code)[0])
            raise FleetError(f"instruction {at}: there is no opcode {code}", code="bad-vta-field")
        opcode = Opcode(int(code))
        chosen = np.flatnonzero(program["opcode"] == code)
        for name, (start, width) in layout(config, opcode).items():
            values = program[name][chosen]
            if name == "memory" and opcode == Opcode.STORE and config.hw_ver == "0.0.1":
                values = np.where(values == Memory.OUT, 0, values)  # two bits: OUT is written as 0
            lowest, highest = (-(1 << width - 1), (1 << width - 1) - 1) if name in _SIGNED else (0, (1 << width) - 1)
            wrong = np.flatnonzero((values < lowest) | (values > highest))
            if len(wrong):
                at, value = int(chosen[wrong[0]]), int(values[wrong[0]])
                raise FleetError(
                    f"instruction {at} ({opcode.name}): {name} is {value}, and must be within {lowest}..{highest} "
                    f"in configuration {config.identity}",
                    code="bad-vta-field",
                )
            masked = values.astype(np.uint64) & np.uint64((1 << width) - 1)
            words[chosen, start // 64] |= masked << np.uint64(start % 64)
    return words.astype("<u8").tobytes()


def decode(data: bytes | bytearray | memoryview, config: VtaConfig) -> Table:
    """The table of a stream. Raises :class:`FleetError` for a bad length or opcode (``bad-vta-program``)."""
    if len(data) % INSN_BYTES:
        raise FleetError(
            f"an instruction stream of {len(data)} bytes is not a multiple of {INSN_BYTES}", code="bad-vta-program"
        )
    words = np.frombuffer(data, "<u8").reshape(-1, 2)
    program = np.zeros(len(words), DTYPE)
    codes = (words[:, 0] & np.uint64(7)).astype(np.int64)
    for code in np.unique(codes):
        chosen = np.flatnonzero(codes == code)
        if code not in _FIELDS_OF:
            raise FleetError(f"instruction {chosen[0]}: there is no opcode {code}", code="bad-vta-program")
        opcode = Opcode(int(code))
        for name, (start, width) in layout(config, opcode).items():
            values = words[chosen, start // 64] >> np.uint64(start % 64) & np.uint64((1 << width) - 1)
            signed = values.astype(np.int64)
            if name in _SIGNED:
                signed = np.where(signed >> width - 1, signed - (1 << width), signed)
            program[name][chosen] = signed
        if opcode == Opcode.STORE and config.hw_ver == "0.0.1":
            program["memory"][chosen] = np.where(
                program["memory"][chosen] == 0, int(Memory.OUT), program["memory"][chosen]
            )
    return program


def encode_uops(uops: npt.NDArray[Any], config: VtaConfig) -> npt.NDArray[np.uint32]:
    """Micro-ops, shape (n, 3) of dst, src and wgt, as words. Raises :class:`FleetError` (``bad-vta-field``)."""
    widths = (config.log2_acc_depth, max(config.log2_acc_depth, config.log2_inp_depth), config.log2_wgt_depth)
    words = np.zeros(len(uops), np.uint32)
    start = 0
    for column, (name, width) in enumerate(zip(("dst", "src", "wgt"), widths, strict=True)):
        values = uops[:, column]
        wrong = np.flatnonzero((values < 0) | (values >> width != 0))
        if len(wrong):
            raise FleetError(
                f"micro-op {wrong[0]}: {name} is {values[wrong[0]]}, and must be below {1 << width}",
                code="bad-vta-field",
            )
        words |= values.astype(np.uint32) << np.uint32(start)
        start += width
    return words


def decode_uops(words: npt.NDArray[np.uint32], config: VtaConfig) -> npt.NDArray[np.int64]:
    """Words as (n, 3) of dst, src and wgt."""
    widths = (config.log2_acc_depth, max(config.log2_acc_depth, config.log2_inp_depth), config.log2_wgt_depth)
    found = np.zeros((len(words), 3), np.int64)
    start = 0
    for column, width in enumerate(widths):
        found[:, column] = (words >> np.uint32(start)) & np.uint32((1 << width) - 1)
        start += width
    return found


def element_bytes(config: VtaConfig, memory: int) -> int:
    """Bytes of one element of a memory in DRAM: the unit of ``dram_base`` and ``x_stride``."""
    sizes = (config.uop_bytes, config.wgt_bytes, config.inp_bytes, config.acc_bytes, config.out_bytes, config.out_bytes)
    return sizes[memory]
