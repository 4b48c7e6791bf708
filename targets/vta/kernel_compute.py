"""GEMM and ALU, as the simulator's loop executes them; compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from targets.vta import kernel_abi as abi
from targets.vta.isa import AluOp, Opcode
from targets.vta.kernel_abi import Status
from targets.vta.vectors import alu_operation, block_products, compiled

_ADD, _LAST_OPERATION = int(AluOp.ADD), max(map(int, AluOp))


@compiled
def check_loops(row: Any, memories: Any, shape: Any, state: Any) -> Any:
    """Whether every micro-op of a GEMM or ALU instruction is there and stays within the buffers."""
    uop, known = memories[0], memories[1]
    begin, end = row[abi.UOP_BGN], row[abi.UOP_END]
    if end > shape[abi.UOP_DEPTH]:
        state[abi.DETAIL], state[abi.DETAIL + 1] = end - 1, shape[abi.UOP_DEPTH]
        return Status.UOP_RANGE
    gemm = row[abi.OPCODE] == Opcode.GEMM
    dst_mask, src_mask = (1 << shape[abi.DST_BITS]) - 1, (1 << shape[abi.SRC_BITS]) - 1
    dst, src, wgt = 0, 0, 0
    for at in range(begin, end):
        if not known[at]:
            state[abi.DETAIL] = at
            return Status.UOP_UNKNOWN
        word = np.int64(uop[at]) & 0xFFFFFFFF
        dst = max(dst, word & dst_mask)
        src = max(src, word >> shape[abi.DST_BITS] & src_mask)
        wgt = max(wgt, word >> (shape[abi.DST_BITS] + shape[abi.SRC_BITS]))
    outer, inner = row[abi.ITER_OUT] - 1, row[abi.ITER_IN] - 1
    dst += outer * row[abi.DST_OUT] + inner * row[abi.DST_IN]
    if dst >= shape[abi.ACC_DEPTH]:
        state[abi.DETAIL], state[abi.DETAIL + 1] = dst, shape[abi.ACC_DEPTH]
        return Status.ACC_RANGE
    # The original simulator's reset reads neither INP nor WGT; the hardware's does.
    if gemm and row[abi.RESET] and not shape[abi.HARDWARE]:
        return Status.DONE
    src += outer * row[abi.SRC_OUT] + inner * row[abi.SRC_IN]
    depth = shape[abi.INP_DEPTH] if gemm else shape[abi.ACC_DEPTH]
    if src >= depth:
        state[abi.DETAIL], state[abi.DETAIL + 1] = src, depth
        return Status.SRC_RANGE
    wgt += outer * row[abi.WGT_OUT] + inner * row[abi.WGT_IN]
    if gemm and wgt >= shape[abi.WGT_DEPTH]:
        state[abi.DETAIL], state[abi.DETAIL + 1] = wgt, shape[abi.WGT_DEPTH]
        return Status.WGT_RANGE
    return Status.DONE


@compiled
def gemm(row: Any, first: Any, last: Any, memories: Any, shape: Any, lanes: Any) -> None:
    """Rows ``first`` to before ``last`` of the outer loop.

    Micro-op by micro-op, each over all its pixels: sums of int32 that wrap do not depend on their order, and OUT has
    the last one.
    """
    uop, _, inp, wgt, acc, out = memories
    batch, columns = shape[abi.BATCH], row[abi.ITER_IN]
    dst_out, dst_in, src_out, src_in = row[abi.DST_OUT], row[abi.DST_IN], row[abi.SRC_OUT], row[abi.SRC_IN]
    wgt_out, wgt_in = row[abi.WGT_OUT], row[abi.WGT_IN]
    for at in range(row[abi.UOP_BGN], row[abi.UOP_END]):
        word = np.int64(uop[at]) & 0xFFFFFFFF
        d = (word & ((1 << shape[abi.DST_BITS]) - 1)) + first * dst_out
        s = (word >> shape[abi.DST_BITS] & ((1 << shape[abi.SRC_BITS]) - 1)) + first * src_out
        w = (word >> (shape[abi.DST_BITS] + shape[abi.SRC_BITS])) + first * wgt_out
        # `across` rows and `along` columns have the same weights
        across = last - first if wgt_out == 0 else 1
        along = columns if wgt_in == 0 else 1
        for outer in range(0, last - first, across):
            for inner in range(0, columns, along):
                block_products(
                    acc, out, inp, wgt,
                    d + outer * dst_out + inner * dst_in,
                    s + outer * src_out + inner * src_in,
                    w + outer * wgt_out + inner * wgt_in,
                    across, along, dst_out, dst_in, src_out, src_in, batch, lanes,
                )  # fmt: skip


@compiled
def reset(row: Any, first: Any, last: Any, memories: Any, shape: Any, lanes: Any) -> None:
    """As :func:`gemm`, in order: ACC becomes 0, and on hardware OUT has the sum that would have been."""
    uop, _, inp, wgt, acc, out = memories
    batch, spare = shape[abi.BATCH], shape[abi.ACC_DEPTH]
    width = batch * len(lanes)
    product = np.int64(-1)  # which one is in the spare element of ACC
    for outer in range(first, last):
        for inner in range(row[abi.ITER_IN]):
            for at in range(row[abi.UOP_BGN], row[abi.UOP_END]):
                word = np.int64(uop[at]) & 0xFFFFFFFF
                d = (word & ((1 << shape[abi.DST_BITS]) - 1)) + outer * row[abi.DST_OUT] + inner * row[abi.DST_IN]
                if shape[abi.HARDWARE]:
                    s = word >> shape[abi.DST_BITS] & ((1 << shape[abi.SRC_BITS]) - 1)
                    w = word >> (shape[abi.DST_BITS] + shape[abi.SRC_BITS])
                    s += outer * row[abi.SRC_OUT] + inner * row[abi.SRC_IN]
                    w += outer * row[abi.WGT_OUT] + inner * row[abi.WGT_IN]
                    if product != s << 32 | w:
                        product = s << 32 | w
                        acc[spare * width : (spare + 1) * width] = 0
                        block_products(acc, out, inp, wgt, spare, s, w, 1, 1, 0, 0, 0, 0, batch, lanes)
                    alu_operation(acc, out, d, spare, 1, 1, 0, 0, _ADD, 0, 0, 0, batch, lanes)
                acc[d * width : (d + 1) * width] = 0


@compiled
def alu(row: Any, first: Any, last: Any, memories: Any, shape: Any, lanes: Any) -> Any:
    """Rows ``first`` to before ``last`` of the outer loop."""
    uop, acc, out = memories[0], memories[4], memories[5]
    batch, columns = shape[abi.BATCH], row[abi.ITER_IN]
    width = batch * len(lanes)
    operation, use_imm, imm = row[abi.ALU_OP], row[abi.USE_IMM], row[abi.IMM]
    dst_out, dst_in, src_out, src_in = row[abi.DST_OUT], row[abi.DST_IN], row[abi.SRC_OUT], row[abi.SRC_IN]
    dst_mask, src_mask = (1 << shape[abi.DST_BITS]) - 1, (1 << shape[abi.SRC_BITS]) - 1
    if operation > _LAST_OPERATION or (operation == AluOp.MUL and shape[abi.HARDWARE]):
        return Status.NO_OPERATION
    # The hardware takes the low 5 bits of a shift amount; in the original simulator 32 or more is undefined.
    spare = 27 if shape[abi.HARDWARE] else 0
    check = operation == AluOp.SHR and not shape[abi.HARDWARE]
    if use_imm:
        # What is done to an element does not depend on others, and is the same each time: any order will do.
        if check and abs(imm) > 31:
            return Status.BAD_SHIFT
        for at in range(row[abi.UOP_BGN], row[abi.UOP_END]):
            d = (np.int64(uop[at]) & dst_mask) + first * dst_out
            alu_operation(
                acc, out, d, d, last - first, columns, dst_out, dst_in, operation, 1, imm, spare, batch, lanes
            )  # fmt: skip
        return Status.DONE
    for outer in range(first, last):
        for inner in range(columns):
            for at in range(row[abi.UOP_BGN], row[abi.UOP_END]):
                word = np.int64(uop[at]) & 0xFFFFFFFF
                d = (word & dst_mask) + outer * dst_out + inner * dst_in
                s = (word >> shape[abi.DST_BITS] & src_mask) + outer * src_out + inner * src_in
                if check:
                    for place in range(s * width, (s + 1) * width):
                        if abs(np.int64(acc[place])) > 31:
                            return Status.BAD_SHIFT
                alu_operation(acc, out, d, s, 1, 1, 0, 0, operation, 0, 0, spare, batch, lanes)
    return Status.DONE
