"""LOAD and STORE, as the simulator's loop executes them; compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from targets.vta import kernel_abi as abi
from targets.vta.config import PAGE
from targets.vta.isa import Memory
from targets.vta.kernel_abi import Status
from targets.vta.vectors import compiled, weights_in_pairs


@compiled
def _copy(target: Any, at: Any, count: Any, values: Any, source: Any) -> None:
    # Unsigned, as an index that might be negative is looked at one by one.
    to, of = np.uint64(at), np.uint64(source)
    for place in range(np.uint64(count)):
        target[to + place] = values[of + place]


@compiled
def load(row: Any, memories: Any, dram: Any, shape: Any, state: Any, lanes: Any) -> Any:
    """One LOAD, of any memory. Returns a status, and tells ``state`` more of a bad one."""
    uop, known, inp, wgt, acc, _ = memories
    values, words = dram
    block = len(lanes)
    width = shape[abi.BATCH] * block
    memory, sram = row[abi.MEMORY], row[abi.SRAM_BASE]
    x, y, stride = row[abi.X_SIZE], row[abi.Y_SIZE], row[abi.X_STRIDE]
    y_pad_0, y_pad_1, x_pad_0, x_pad_1 = row[abi.Y_PAD_0], row[abi.Y_PAD_1], row[abi.X_PAD_0], row[abi.X_PAD_1]
    if shape[abi.HARDWARE]:
        if memory == Memory.UOP:
            y = 1
        if memory in (Memory.UOP, Memory.WGT):
            y_pad_0, y_pad_1, x_pad_0, x_pad_1 = 0, 0, 0, 0
    elif x == 0:
        return Status.DONE
    if memory == Memory.UOP:
        depth, size = shape[abi.UOP_DEPTH], 4
    elif memory == Memory.INP:
        depth, size = shape[abi.INP_DEPTH], width
    elif memory == Memory.WGT:
        depth, size = shape[abi.WGT_DEPTH], block * block
    elif memory == Memory.ACC:
        depth, size = shape[abi.ACC_DEPTH], 4 * width
    elif memory == Memory.ACC_8BIT and not shape[abi.HARDWARE]:
        depth, size = shape[abi.ACC_DEPTH], width
    else:
        return Status.BAD_MEMORY
    line = x_pad_0 + x + x_pad_1
    total = line * (y_pad_0 + y + y_pad_1)
    if sram + total > depth:
        state[abi.DETAIL], state[abi.DETAIL + 1] = sram + total - 1, depth
        return Status.SRAM_RANGE
    first = row[abi.DRAM_BASE] * size
    if x > 0 and y > 0:
        last = first + ((y - 1) * stride + x) * size
        if first < PAGE or last > values.size:
            state[abi.DETAIL], state[abi.DETAIL + 1] = first, last
            return Status.DRAM_RANGE
    if total > x * y:
        if memory == Memory.UOP:
            uop[sram : sram + total] = 0
            known[sram : sram + total] = 1
        elif memory == Memory.INP:
            inp[sram * width : (sram + total) * width] = 0
        elif memory == Memory.WGT:
            wgt[sram * block * block : (sram + total) * block * block] = 0
        else:
            acc[sram * width : (sram + total) * width] = 0
    at = sram + line * y_pad_0 + x_pad_0
    for _ in range(y):
        if memory == Memory.UOP:
            _copy(uop, at, x, words, first // 4)
            known[at : at + x] = 1
        elif memory == Memory.INP:
            _copy(inp, at * width, x * width, values, first)
        elif memory == Memory.WGT:
            for element in range(x):
                weights_in_pairs(wgt, values, at + element, first + element * size, lanes)
        elif memory == Memory.ACC:
            _copy(acc, at * width, x * width, words, first // 4)
        else:
            _copy(acc, at * width, x * width, values, first)
        at += line
        first += stride * size
    return Status.DONE


@compiled
def store(row: Any, memories: Any, dram: Any, shape: Any, state: Any, lanes: Any) -> Any:
    """One STORE: of OUT on hardware, of the low bytes of ACC in the original simulator."""
    acc, out = memories[4], memories[5]
    values = dram[0]
    width = shape[abi.BATCH] * len(lanes)
    sram, x, y, stride = row[abi.SRAM_BASE], row[abi.X_SIZE], row[abi.Y_SIZE], row[abi.X_STRIDE]
    if x == 0 or y == 0:
        return Status.DONE
    if not shape[abi.HARDWARE]:
        if row[abi.MEMORY] != Memory.OUT:
            return Status.BAD_MEMORY
        if row[abi.Y_PAD_0] or row[abi.Y_PAD_1] or row[abi.X_PAD_0] or row[abi.X_PAD_1]:
            return Status.STORE_PADDING
    if sram + x * y > shape[abi.ACC_DEPTH]:
        state[abi.DETAIL], state[abi.DETAIL + 1] = sram + x * y - 1, shape[abi.ACC_DEPTH]
        return Status.SRAM_RANGE
    first = row[abi.DRAM_BASE] * width
    last = first + ((y - 1) * stride + x) * width
    if first < PAGE or last > values.size:
        state[abi.DETAIL], state[abi.DETAIL + 1] = first, last
        return Status.DRAM_RANGE
    at = sram * width
    for _ in range(y):
        if shape[abi.HARDWARE]:
            _copy(values, first, x * width, out, at)
        else:
            _copy(values, first, x * width, acc, at)
        at += x * width
        first += stride * width
    return Status.DONE
