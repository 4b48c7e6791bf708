"""The simulator's loop: which instruction is next, and what it does, compiled by numba.

Nothing here raises: :func:`execute` returns a :class:`~targets.vta.kernel_abi.Status`, and ``state`` says where. What
is checked before an instruction touches memory: every index that it can reach (indices only grow along its loops, so
the last is the largest), every byte of DRAM, every micro-op.

:mod:`targets.vta.native` compiles this and keeps the result; nothing else should import it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import carray, njit, types

from targets.vta import kernel_abi as abi
from targets.vta.config import PAGE
from targets.vta.isa import COLUMNS, AluOp, Memory, Module, Opcode
from targets.vta.kernel_abi import (
    ACC_DEPTH,
    AT,
    BATCH,
    DETAIL,
    DST_BITS,
    FINISHED,
    HARDWARE,
    HEAD,
    INP_DEPTH,
    POP_NEXT,
    POP_PREV,
    PUSH_NEXT,
    PUSH_PREV,
    PUSHED,
    RANDOM,
    ROW,
    SRC_BITS,
    TOKENS,
    UOP_DEPTH,
    WGT_DEPTH,
    Status,
)
from targets.vta.vectors import alu_operation, block_products, weights_in_pairs

_OPCODE, _POP_PREV, _POP_NEXT, _PUSH_PREV, _PUSH_NEXT = (
    COLUMNS.index(name) for name in ("opcode", "pop_prev", "pop_next", "push_prev", "push_next")
)
_MEMORY, _SRAM, _DRAM, _Y, _X, _STRIDE, _Y_PAD_0, _Y_PAD_1, _X_PAD_0, _X_PAD_1 = (
    COLUMNS.index(name)
    for name in (
        *("memory", "sram_base", "dram_base", "y_size", "x_size", "x_stride"),
        *("y_pad_0", "y_pad_1", "x_pad_0", "x_pad_1"),
    )
)
_RESET, _BEGIN, _END, _ITER_OUT, _ITER_IN, _DST_OUT, _DST_IN, _SRC_OUT, _SRC_IN, _WGT_OUT, _WGT_IN = (
    COLUMNS.index(name)
    for name in (
        *("reset", "uop_bgn", "uop_end", "iter_out", "iter_in", "dst_factor_out", "dst_factor_in"),
        *("src_factor_out", "src_factor_in", "wgt_factor_out", "wgt_factor_in"),
    )
)
_ALU_OP, _USE_IMM, _IMM = (COLUMNS.index(name) for name in ("alu_op", "use_imm", "imm"))

_LOAD, _STORE, _GEMM, _FINISH = (int(code) for code in (Opcode.LOAD, Opcode.STORE, Opcode.GEMM, Opcode.FINISH))
_UOP, _WGT, _INP, _ACC, _OUT, _ACC_8BIT = (int(memory) for memory in Memory)
_ADD, _SHR, _MUL = int(AluOp.ADD), int(AluOp.SHR), int(AluOp.MUL)
_COMPUTE, _MODULES = int(Module.COMPUTE), len(Module)
_COLUMNS, _SHAPE_SIZE, _STATE_SIZE = len(COLUMNS), abi.SHAPE_SIZE, abi.STATE_SIZE
_OK, _DONE, _PAUSED, _DEADLOCK = int(Status.DONE), int(Status.DONE), int(Status.PAUSED), int(Status.DEADLOCK)
_AFTER_FINISH, _NO_QUEUE, _BAD_MEMORY = int(Status.AFTER_FINISH), int(Status.NO_QUEUE), int(Status.BAD_MEMORY)
_SRAM_RANGE, _DRAM_RANGE = int(Status.SRAM_RANGE), int(Status.DRAM_RANGE)
_UOP_RANGE, _UOP_UNKNOWN, _ACC_RANGE = int(Status.UOP_RANGE), int(Status.UOP_UNKNOWN), int(Status.ACC_RANGE)
_SRC_RANGE, _WGT_RANGE = int(Status.SRC_RANGE), int(Status.WGT_RANGE)
_NO_OPERATION, _BAD_SHIFT = int(Status.NO_OPERATION), int(Status.BAD_SHIFT)
_STORE_PADDING = int(Status.STORE_PADDING)

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    compiled: _Function = njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    return compiled


@_compiled
def _copy(target: Any, at: Any, count: Any, values: Any, source: Any) -> None:
    # Unsigned, as an index that might be negative is looked at one by one.
    to, of = np.uint64(at), np.uint64(source)
    for place in range(np.uint64(count)):
        target[to + place] = values[of + place]


@_compiled
def _load(row: Any, memories: Any, dram: Any, shape: Any, state: Any, lanes: Any) -> Any:
    uop, known, inp, wgt, acc, _ = memories
    values, words = dram
    block = len(lanes)
    width = shape[BATCH] * block
    memory, sram, x, y, stride = row[_MEMORY], row[_SRAM], row[_X], row[_Y], row[_STRIDE]
    y_pad_0, y_pad_1, x_pad_0, x_pad_1 = row[_Y_PAD_0], row[_Y_PAD_1], row[_X_PAD_0], row[_X_PAD_1]
    if shape[HARDWARE]:
        if memory == _UOP:
            y = 1
        if memory in (_UOP, _WGT):
            y_pad_0, y_pad_1, x_pad_0, x_pad_1 = 0, 0, 0, 0
    elif x == 0:
        return _OK
    if memory == _UOP:
        depth, size = shape[UOP_DEPTH], 4
    elif memory == _INP:
        depth, size = shape[INP_DEPTH], width
    elif memory == _WGT:
        depth, size = shape[WGT_DEPTH], block * block
    elif memory == _ACC:
        depth, size = shape[ACC_DEPTH], 4 * width
    elif memory == _ACC_8BIT and not shape[HARDWARE]:
        depth, size = shape[ACC_DEPTH], width
    else:
        return _BAD_MEMORY
    line = x_pad_0 + x + x_pad_1
    total = line * (y_pad_0 + y + y_pad_1)
    if sram + total > depth:
        state[DETAIL], state[DETAIL + 1] = sram + total - 1, depth
        return _SRAM_RANGE
    first = row[_DRAM] * size
    if x > 0 and y > 0:
        last = first + ((y - 1) * stride + x) * size
        if first < PAGE or last > values.size:
            state[DETAIL], state[DETAIL + 1] = first, last
            return _DRAM_RANGE
    if total > x * y:
        if memory == _UOP:
            uop[sram : sram + total] = 0
            known[sram : sram + total] = 1
        elif memory == _INP:
            inp[sram * width : (sram + total) * width] = 0
        elif memory == _WGT:
            wgt[sram * block * block : (sram + total) * block * block] = 0
        else:
            acc[sram * width : (sram + total) * width] = 0
    at = sram + line * y_pad_0 + x_pad_0
    for _ in range(y):
        if memory == _UOP:
            _copy(uop, at, x, words, first // 4)
            known[at : at + x] = 1
        elif memory == _INP:
            _copy(inp, at * width, x * width, values, first)
        elif memory == _WGT:
            for element in range(x):
                weights_in_pairs(wgt, values, at + element, first + element * size, lanes)
        elif memory == _ACC:
            _copy(acc, at * width, x * width, words, first // 4)
        else:
            _copy(acc, at * width, x * width, values, first)
        at += line
        first += stride * size
    return _OK


@_compiled
def _store(row: Any, memories: Any, dram: Any, shape: Any, state: Any, lanes: Any) -> Any:
    acc, out = memories[4], memories[5]
    values = dram[0]
    width = shape[BATCH] * len(lanes)
    sram, x, y, stride = row[_SRAM], row[_X], row[_Y], row[_STRIDE]
    if x == 0 or y == 0:
        return _OK
    if not shape[HARDWARE]:
        if row[_MEMORY] != _OUT:
            return _BAD_MEMORY
        if row[_Y_PAD_0] or row[_Y_PAD_1] or row[_X_PAD_0] or row[_X_PAD_1]:
            return _STORE_PADDING
    if sram + x * y > shape[ACC_DEPTH]:
        state[DETAIL], state[DETAIL + 1] = sram + x * y - 1, shape[ACC_DEPTH]
        return _SRAM_RANGE
    first = row[_DRAM] * width
    last = first + ((y - 1) * stride + x) * width
    if first < PAGE or last > values.size:
        state[DETAIL], state[DETAIL + 1] = first, last
        return _DRAM_RANGE
    at = sram * width
    for _ in range(y):
        if shape[HARDWARE]:
            _copy(values, first, x * width, out, at)
        else:
            _copy(values, first, x * width, acc, at)
        at += x * width
        first += stride * width
    return _OK


@_compiled
def _check_loops(row: Any, memories: Any, shape: Any, state: Any) -> Any:
    """Whether every micro-op of a GEMM or ALU instruction is there and stays within the buffers."""
    uop, known = memories[0], memories[1]
    begin, end = row[_BEGIN], row[_END]
    if end > shape[UOP_DEPTH]:
        state[DETAIL], state[DETAIL + 1] = end - 1, shape[UOP_DEPTH]
        return _UOP_RANGE
    gemm = row[_OPCODE] == _GEMM
    dst_mask, src_mask = (1 << shape[DST_BITS]) - 1, (1 << shape[SRC_BITS]) - 1
    dst, src, wgt = 0, 0, 0
    for at in range(begin, end):
        if not known[at]:
            state[DETAIL] = at
            return _UOP_UNKNOWN
        word = np.int64(uop[at]) & 0xFFFFFFFF
        dst = max(dst, word & dst_mask)
        src = max(src, word >> shape[DST_BITS] & src_mask)
        wgt = max(wgt, word >> (shape[DST_BITS] + shape[SRC_BITS]))
    outer, inner = row[_ITER_OUT] - 1, row[_ITER_IN] - 1
    dst += outer * row[_DST_OUT] + inner * row[_DST_IN]
    if dst >= shape[ACC_DEPTH]:
        state[DETAIL], state[DETAIL + 1] = dst, shape[ACC_DEPTH]
        return _ACC_RANGE
    # The original simulator's reset reads neither INP nor WGT; the hardware's does.
    if gemm and row[_RESET] and not shape[HARDWARE]:
        return _OK
    src += outer * row[_SRC_OUT] + inner * row[_SRC_IN]
    depth = shape[INP_DEPTH] if gemm else shape[ACC_DEPTH]
    if src >= depth:
        state[DETAIL], state[DETAIL + 1] = src, depth
        return _SRC_RANGE
    wgt += outer * row[_WGT_OUT] + inner * row[_WGT_IN]
    if gemm and wgt >= shape[WGT_DEPTH]:
        state[DETAIL], state[DETAIL + 1] = wgt, shape[WGT_DEPTH]
        return _WGT_RANGE
    return _OK


@_compiled
def _gemm(row: Any, first: Any, last: Any, memories: Any, shape: Any, lanes: Any) -> None:
    """Rows ``first`` to before ``last`` of the outer loop.

    Micro-op by micro-op, each over all its pixels: sums of int32 that wrap do not depend on their order, and OUT has
    the last one.
    """
    uop, _, inp, wgt, acc, out = memories
    batch, columns = shape[BATCH], row[_ITER_IN]
    dst_out, dst_in, src_out, src_in = row[_DST_OUT], row[_DST_IN], row[_SRC_OUT], row[_SRC_IN]
    wgt_out, wgt_in = row[_WGT_OUT], row[_WGT_IN]
    for at in range(row[_BEGIN], row[_END]):
        word = np.int64(uop[at]) & 0xFFFFFFFF
        d = (word & ((1 << shape[DST_BITS]) - 1)) + first * dst_out
        s = (word >> shape[DST_BITS] & ((1 << shape[SRC_BITS]) - 1)) + first * src_out
        w = (word >> (shape[DST_BITS] + shape[SRC_BITS])) + first * wgt_out
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


@_compiled
def _reset(row: Any, first: Any, last: Any, memories: Any, shape: Any, lanes: Any) -> None:
    """As :func:`_gemm`, in order: ACC becomes 0, and on hardware OUT has the sum that would have been."""
    uop, _, inp, wgt, acc, out = memories
    batch, spare = shape[BATCH], shape[ACC_DEPTH]
    width = batch * len(lanes)
    product = np.int64(-1)  # which one is in the spare element of ACC
    for outer in range(first, last):
        for inner in range(row[_ITER_IN]):
            for at in range(row[_BEGIN], row[_END]):
                word = np.int64(uop[at]) & 0xFFFFFFFF
                d = (word & ((1 << shape[DST_BITS]) - 1)) + outer * row[_DST_OUT] + inner * row[_DST_IN]
                if shape[HARDWARE]:
                    s = word >> shape[DST_BITS] & ((1 << shape[SRC_BITS]) - 1)
                    w = word >> (shape[DST_BITS] + shape[SRC_BITS])
                    s += outer * row[_SRC_OUT] + inner * row[_SRC_IN]
                    w += outer * row[_WGT_OUT] + inner * row[_WGT_IN]
                    if product != s << 32 | w:
                        product = s << 32 | w
                        acc[spare * width : (spare + 1) * width] = 0
                        block_products(acc, out, inp, wgt, spare, s, w, 1, 1, 0, 0, 0, 0, batch, lanes)
                    alu_operation(acc, out, d, spare, 1, 1, 0, 0, _ADD, 0, 0, 0, batch, lanes)
                acc[d * width : (d + 1) * width] = 0


@_compiled
def _alu(row: Any, first: Any, last: Any, memories: Any, shape: Any, lanes: Any) -> Any:
    """Rows ``first`` to before ``last`` of the outer loop."""
    uop, acc, out = memories[0], memories[4], memories[5]
    batch, columns = shape[BATCH], row[_ITER_IN]
    width = batch * len(lanes)
    operation, use_imm, imm = row[_ALU_OP], row[_USE_IMM], row[_IMM]
    dst_out, dst_in, src_out, src_in = row[_DST_OUT], row[_DST_IN], row[_SRC_OUT], row[_SRC_IN]
    dst_mask, src_mask = (1 << shape[DST_BITS]) - 1, (1 << shape[SRC_BITS]) - 1
    if operation > _MUL or (operation == _MUL and shape[HARDWARE]):
        return _NO_OPERATION
    # The hardware takes the low 5 bits of a shift amount; in the original simulator 32 or more is undefined.
    spare = 27 if shape[HARDWARE] else 0
    check = operation == _SHR and not shape[HARDWARE]
    if use_imm:
        # What is done to an element does not depend on others, and is the same each time: any order will do.
        if check and abs(imm) > 31:
            return _BAD_SHIFT
        for at in range(row[_BEGIN], row[_END]):
            d = (np.int64(uop[at]) & dst_mask) + first * dst_out
            alu_operation(
                acc, out, d, d, last - first, columns, dst_out, dst_in, operation, 1, imm, spare, batch, lanes
            )  # fmt: skip
        return _OK
    for outer in range(first, last):
        for inner in range(columns):
            for at in range(row[_BEGIN], row[_END]):
                word = np.int64(uop[at]) & 0xFFFFFFFF
                d = (word & dst_mask) + outer * dst_out + inner * dst_in
                s = (word >> shape[DST_BITS] & src_mask) + outer * src_out + inner * src_in
                if check:
                    for place in range(s * width, (s + 1) * width):
                        if abs(np.int64(acc[place])) > 31:
                            return _BAD_SHIFT
                alu_operation(acc, out, d, s, 1, 1, 0, 0, operation, 0, 0, spare, batch, lanes)
    return _OK


@_compiled
def _next(table: Any, queue: Any, ends: Any, state: Any, shape: Any) -> Any:
    """The module whose next instruction is ready and is to execute; -1 when there is none.

    Of several, the one that comes first in the stream, or in random order any.
    """
    chosen, ready = -1, 0
    for module in range(3):
        if state[HEAD + module] == ends[module]:
            continue
        row = table[queue[state[HEAD + module]]]
        waits = False
        for bit, tokens in ((row[_POP_PREV], POP_PREV[module]), (row[_POP_NEXT], POP_NEXT[module])):
            if bit and tokens >= 0 and state[TOKENS + tokens] == 0:
                waits = True
        if waits:
            continue
        ready += 1
        if state[RANDOM]:
            # xorshift: the same seed gives the same order on every machine
            state[RANDOM] ^= state[RANDOM] << 13
            state[RANDOM] ^= state[RANDOM] >> 7 & 0x01FFFFFFFFFFFFFF
            state[RANDOM] ^= state[RANDOM] << 17
            if (state[RANDOM] >> 11 & 0xFFFFFFFF) % ready == 0:
                chosen = module
        elif chosen < 0 or queue[state[HEAD + module]] < queue[state[HEAD + chosen]]:
            chosen = module
    return chosen


@_compiled
def execute(
    table: Any, queue: Any, ends: Any, memories: Any, dram: Any, shape: Any, state: Any, budget: Any, lanes: Any
) -> Any:
    """Execute until the stream ends, something is wrong, or about ``budget`` micro-ops are done.

    Args:
        table: int64 (instructions, columns of :data:`targets.vta.isa.COLUMNS`).
        queue: int64; the instructions' indices by module, in order; ``ends`` where each module's end.
        memories: uop int32, known uint8 (which micro-ops were ever loaded), inp int16, wgt int16 (see
            :func:`targets.vta.vectors.block_products`), acc int32, out int8; each flat. The last two have one element
            more than the accelerator's, to work in.
        dram: the same bytes as int8 and as int32.
        shape, state: int64, see above.
        lanes: as many zeros as a block has channels.

    Returns: a :class:`Status`.
    """
    while True:
        module = _next(table, queue, ends, state, shape)
        if module < 0:
            for at in range(3):
                if state[HEAD + at] < ends[at]:
                    return _DEADLOCK
            return _DONE
        index = queue[state[HEAD + module]]
        row = table[index]
        state[AT] = index
        if state[FINISHED]:
            return _AFTER_FINISH
        pop_prev, pop_next = POP_PREV[module], POP_NEXT[module]
        push_prev, push_next = PUSH_PREV[module], PUSH_NEXT[module]
        if not shape[HARDWARE] and (
            (row[_POP_PREV] and pop_prev < 0)
            or (row[_POP_NEXT] and pop_next < 0)
            or (row[_PUSH_PREV] and push_prev < 0)
            or (row[_PUSH_NEXT] and push_next < 0)
        ):
            return _NO_QUEUE
        opcode = row[_OPCODE]
        status = _OK
        if opcode == _LOAD:
            status = _load(row, memories, dram, shape, state, lanes)
            budget -= 16
        elif opcode == _STORE:
            status = _store(row, memories, dram, shape, state, lanes)
            budget -= 16
        elif opcode == _FINISH:
            state[FINISHED] = 1
        else:
            work = row[_ITER_IN] * (row[_END] - row[_BEGIN])
            if work > 0 and row[_ITER_OUT] > 0:
                first = state[ROW]
                if first == 0:
                    status = _check_loops(row, memories, shape, state)
                    if status != _OK:
                        return status
                last = min(row[_ITER_OUT], first + max(1, budget // work))
                if opcode != _GEMM:
                    status = _alu(row, first, last, memories, shape, lanes)
                elif row[_RESET]:
                    _reset(row, first, last, memories, shape, lanes)
                else:
                    _gemm(row, first, last, memories, shape, lanes)
                budget -= (last - first) * work
                state[ROW] = last if last < row[_ITER_OUT] else 0
        if status != _OK:
            return status
        if module == _COMPUTE and state[ROW]:
            return _PAUSED
        if row[_POP_PREV] and pop_prev >= 0:
            state[TOKENS + pop_prev] -= 1
        if row[_POP_NEXT] and pop_next >= 0:
            state[TOKENS + pop_next] -= 1
        if row[_PUSH_PREV] and push_prev >= 0:
            state[TOKENS + push_prev] += 1
            state[PUSHED + push_prev] = index
        if row[_PUSH_NEXT] and push_next >= 0:
            state[TOKENS + push_next] += 1
            state[PUSHED + push_next] = index
        state[HEAD + module] += 1
        if budget <= 0:
            return _PAUSED


def compiled_loop(block: int) -> Any:
    """:func:`execute` for blocks of so many channels, compiled; takes pointers and integers only.

    Arguments as :data:`targets.vta.native.SIGNATURE` has them.
    """
    lanes = (0,) * block

    def loop(  # type: ignore[no-untyped-def]
        table, count, queue, ends, uop, known, inp, wgt, acc, out, values, words, size, shape_at, state_at, budget
    ):
        shape = carray(shape_at, (_SHAPE_SIZE,))
        width = shape[BATCH] * len(lanes)
        memories = (
            carray(uop, (shape[UOP_DEPTH],)),
            carray(known, (shape[UOP_DEPTH],)),
            carray(inp, (shape[INP_DEPTH] * width,)),
            carray(wgt, (shape[WGT_DEPTH] * len(lanes) * len(lanes),)),
            carray(acc, ((shape[ACC_DEPTH] + 1) * width,)),
            carray(out, ((shape[ACC_DEPTH] + 1) * width,)),
        )
        return execute(
            carray(table, (count, _COLUMNS)),
            carray(queue, (count,)),
            carray(ends, (_MODULES,)),
            memories,
            (carray(values, (size,)), carray(words, (size // 4,))),
            shape,
            carray(state_at, (_STATE_SIZE,)),
            budget,
            lanes,
        )

    i8, u8, i16, i32, i64 = (
        types.CPointer(kind) for kind in (types.int8, types.uint8, types.int16, types.int32, types.int64)
    )
    signature = types.int64(
        i64, types.int64, i64, i64, i32, u8, i16, i16, i32, i8, i8, i32, types.int64, i64, i64, types.int64
    )
    return njit(signature, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(loop)
