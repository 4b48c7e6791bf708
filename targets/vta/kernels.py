"""The simulator's loop: which instruction is next, and what it does, compiled by numba.

Nothing here raises: :func:`execute` returns a :class:`~targets.vta.kernel_abi.Status`, and ``state`` says where. What
is checked before an instruction touches memory: every index that it can reach (indices only grow along its loops, so
the last is the largest), every byte of DRAM, every micro-op.

:mod:`targets.vta.native` compiles this and keeps the result; nothing else imports it.
"""

from __future__ import annotations

from typing import Any

from numba import carray, njit, types

from targets.vta import kernel_abi as abi
from targets.vta.isa import COLUMNS, Module, Opcode
from targets.vta.kernel_abi import Status
from targets.vta.kernel_compute import alu, check_loops, gemm, reset
from targets.vta.kernel_memory import load, store
from targets.vta.vectors import compiled

_COLUMNS, _MODULES = len(COLUMNS), len(Module)


@compiled
def _next(table: Any, queue: Any, ends: Any, state: Any, shape: Any) -> Any:
    """The module whose next instruction is ready and is to execute; -1 when there is none.

    Of several, the one that comes first in the stream, or in random order any.
    """
    chosen, ready = -1, 0
    for module in range(3):
        if state[abi.HEAD + module] == ends[module]:
            continue
        row = table[queue[state[abi.HEAD + module]]]
        waits = False
        for bit, tokens in ((row[abi.POPS_PREV], abi.POP_PREV[module]), (row[abi.POPS_NEXT], abi.POP_NEXT[module])):
            if bit and tokens >= 0 and state[abi.TOKENS + tokens] == 0:
                waits = True
        if waits:
            continue
        ready += 1
        if state[abi.RANDOM]:
            # xorshift: the same seed gives the same order on every machine
            state[abi.RANDOM] ^= state[abi.RANDOM] << 13
            state[abi.RANDOM] ^= state[abi.RANDOM] >> 7 & 0x01FFFFFFFFFFFFFF
            state[abi.RANDOM] ^= state[abi.RANDOM] << 17
            if (state[abi.RANDOM] >> 11 & 0xFFFFFFFF) % ready == 0:
                chosen = module
        elif chosen < 0 or queue[state[abi.HEAD + module]] < queue[state[abi.HEAD + chosen]]:
            chosen = module
    return chosen


@compiled
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
        shape, state: int64, as :mod:`targets.vta.kernel_abi` has them.
        lanes: as many zeros as a block has channels.

    Returns: a :class:`~targets.vta.kernel_abi.Status`.
    """
    while True:
        module = _next(table, queue, ends, state, shape)
        if module < 0:
            for at in range(3):
                if state[abi.HEAD + at] < ends[at]:
                    return Status.DEADLOCK
            return Status.DONE
        index = queue[state[abi.HEAD + module]]
        row = table[index]
        state[abi.AT] = index
        if state[abi.FINISHED]:
            return Status.AFTER_FINISH
        pop_prev, pop_next = abi.POP_PREV[module], abi.POP_NEXT[module]
        push_prev, push_next = abi.PUSH_PREV[module], abi.PUSH_NEXT[module]
        if not shape[abi.HARDWARE] and (
            (row[abi.POPS_PREV] and pop_prev < 0)
            or (row[abi.POPS_NEXT] and pop_next < 0)
            or (row[abi.PUSHES_PREV] and push_prev < 0)
            or (row[abi.PUSHES_NEXT] and push_next < 0)
        ):
            return Status.NO_QUEUE
        opcode = row[abi.OPCODE]
        status = Status.DONE
        if opcode == Opcode.LOAD:
            status = load(row, memories, dram, shape, state, lanes)
            budget -= 16
        elif opcode == Opcode.STORE:
            status = store(row, memories, dram, shape, state, lanes)
            budget -= 16
        elif opcode == Opcode.FINISH:
            state[abi.FINISHED] = 1
        else:
            work = row[abi.ITER_IN] * (row[abi.UOP_END] - row[abi.UOP_BGN])
            if work > 0 and row[abi.ITER_OUT] > 0:
                first = state[abi.ROW]
                if first == 0:
                    status = check_loops(row, memories, shape, state)
                    if status != Status.DONE:
                        return status
                last = min(row[abi.ITER_OUT], first + max(1, budget // work))
                if opcode != Opcode.GEMM:
                    status = alu(row, first, last, memories, shape, lanes)
                elif row[abi.RESET]:
                    reset(row, first, last, memories, shape, lanes)
                else:
                    gemm(row, first, last, memories, shape, lanes)
                budget -= (last - first) * work
                state[abi.ROW] = last if last < row[abi.ITER_OUT] else 0
        if status != Status.DONE:
            return status
        if module == Module.COMPUTE and state[abi.ROW]:
            return Status.PAUSED
        if row[abi.POPS_PREV] and pop_prev >= 0:
            state[abi.TOKENS + pop_prev] -= 1
        if row[abi.POPS_NEXT] and pop_next >= 0:
            state[abi.TOKENS + pop_next] -= 1
        if row[abi.PUSHES_PREV] and push_prev >= 0:
            state[abi.TOKENS + push_prev] += 1
            state[abi.PUSHED + push_prev] = index
        if row[abi.PUSHES_NEXT] and push_next >= 0:
            state[abi.TOKENS + push_next] += 1
            state[abi.PUSHED + push_next] = index
        state[abi.HEAD + module] += 1
        if budget <= 0:
            return Status.PAUSED


def compiled_loop(block: int) -> Any:
    """:func:`execute` for blocks of so many channels, compiled; takes pointers and integers, and gives an integer."""
    lanes = (0,) * block

    def loop(  # type: ignore[no-untyped-def]
        table, count, queue, ends, uop, known, inp, wgt, acc, out, values, words, size, shape_at, state_at, budget
    ):
        shape = carray(shape_at, (abi.SHAPE_SIZE,))
        width = shape[abi.BATCH] * len(lanes)
        memories = (
            carray(uop, (shape[abi.UOP_DEPTH],)),
            carray(known, (shape[abi.UOP_DEPTH],)),
            carray(inp, (shape[abi.INP_DEPTH] * width,)),
            carray(wgt, (shape[abi.WGT_DEPTH] * len(lanes) * len(lanes),)),
            carray(acc, ((shape[abi.ACC_DEPTH] + 1) * width,)),
            carray(out, ((shape[abi.ACC_DEPTH] + 1) * width,)),
        )
        status = execute(
            carray(table, (count, _COLUMNS)),
            carray(queue, (count,)),
            carray(ends, (_MODULES,)),
            memories,
            (carray(values, (size,)), carray(words, (size // 4,))),
            shape,
            carray(state_at, (abi.STATE_SIZE,)),
            budget,
            lanes,
        )
        return status.value

    i8, u8, i16, i32, i64 = (
        types.CPointer(kind) for kind in (types.int8, types.uint8, types.int16, types.int32, types.int64)
    )
    signature = types.int64(
        i64, types.int64, i64, i64, i32, u8, i16, i16, i32, i8, i8, i32, types.int64, i64, i64, types.int64
    )
    return njit(signature, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(loop)
