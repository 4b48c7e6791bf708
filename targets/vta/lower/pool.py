"""Instructions of a max-pool: the GEMM core copies int8 into ACC (a diagonal of ones), MAX compares there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from targets.vta.config import VtaConfig
from targets.vta.graph import Shape
from targets.vta.isa import AluOp, Memory
from targets.vta.lower.blocks import identity_block
from targets.vta.lower.stream import Stream
from targets.vta.lower.tiling import MAX_PAD
from targets.vta.qgraph import QMaxPool


@dataclass(frozen=True)
class Window:
    """A max-pool in blocks, with what one tile of ``rows`` × ``columns`` of output takes."""

    node: QMaxPool
    n: int
    blocks: int
    h: int
    w: int
    oh: int
    ow: int
    rows: int
    columns: int

    def height(self, rows: int) -> int:
        return (rows - 1) * self.node.stride[0] + self.node.kernel[0]

    def width(self, columns: int) -> int:
        return (columns - 1) * self.node.stride[1] + self.node.kernel[1]


def window(node: QMaxPool, source: Shape, target: Shape, config: VtaConfig) -> Window | str:
    """The pool with the largest tile that fits, or why none does."""
    if max(node.padding) > MAX_PAD or node.padding[0] >= node.kernel[0] or node.padding[1] >= node.kernel[1]:
        return "padding as large as the kernel"
    if max(source[2] * source[3], target[2] * target[3]) > 65535:
        return f"pictures of {source[2]}×{source[3]}; a plane of more than 65535 pixels cannot be addressed"
    for columns in range(target[3], 0, -1):
        for rows in range(target[2], 0, -1):
            area = ((rows - 1) * node.stride[0] + node.kernel[0]) * ((columns - 1) * node.stride[1] + node.kernel[1])
            if 2 * area <= config.inp_depth and area + 2 * rows * columns <= config.acc_depth:
                n, blocks = -(-source[0] // config.batch), -(-source[1] // config.block)
                return Window(node, n, blocks, *source[2:], *target[2:], rows, columns)
    return f"a kernel of {node.kernel[0]}×{node.kernel[1]}; two of its windows do not fit INP"


def weights(config: VtaConfig) -> bytes:
    """The block that copies."""
    return identity_block(config.block, 1).tobytes()


def emit(shape: Window, stream: Stream, *, source: int, target: int, weights: int) -> None:
    """Append the instructions; the arguments are addresses in bytes."""
    config = stream.config
    copy = config.wgt_depth - 1
    stream.load(Memory.WGT, copy, weights // config.wgt_bytes, 1, 1, 1)
    slot = config.inp_depth // 2
    number = 0
    for n in range(shape.n):
        for block in range(shape.blocks):
            for y in range(0, shape.oh, shape.rows):
                for x in range(0, shape.ow, shape.columns):
                    end = (min(y + shape.rows, shape.oh), min(x + shape.columns, shape.ow))
                    plane = n * shape.blocks + block
                    _tile(shape, stream, plane, (y, x), end, source, target, number % 2 * slot, number % 2, copy)
                    number += 1


def _tile(
    shape: Window,
    stream: Stream,
    plane: int,
    start: tuple[int, int],
    end: tuple[int, int],
    source: int,
    target: int,
    inp_at: int,
    parity: int,
    copy: int,
) -> None:
    node, config = shape.node, stream.config
    rows, columns = end[0] - start[0], end[1] - start[1]
    height, width = shape.height(rows), shape.width(columns)
    first = (start[0] * node.stride[0] - node.padding[0], start[1] * node.stride[1] - node.padding[1])
    low = (max(first[0], 0), max(first[1], 0))
    high = (min(first[0] + height, shape.h), min(first[1] + width, shape.w))
    real = (high[0] - low[0], high[1] - low[1])
    pads = (low[0] - first[0], low[1] - first[1], first[0] + height - high[0], first[1] + width - high[1])
    dram = source // config.inp_bytes + plane * shape.h * shape.w + low[0] * shape.w + low[1]
    stream.load(Memory.INP, inp_at, dram, real[0], real[1], shape.w, pads)
    # Results of two tiles in turn, so that one is stored while the next is made; the window's values lie behind them.
    size = shape.rows * shape.columns
    result, values = parity * size, 2 * size
    stream.reset(result, rows * columns)
    stream.reset(values, height * width)
    outer = (rows, columns, node.stride[0] * width) if rows > 1 else (1, 0, 0)
    inner = (columns, 1, node.stride[1])
    begin = np.array([[result, inp_at, copy]], np.int64)
    stream.gemm(begin, stream.place(begin), outer, inner)
    whole = np.array([[values, inp_at, copy]], np.int64)
    stream.gemm(whole, stream.place(whole), inner=(height * width, 1, 1))
    for ky in range(node.kernel[0]):
        for kx in range(node.kernel[1]):
            if ky or kx:
                stream.alu(AluOp.MAX, result, values + ky * width + kx, outer, inner)
    dram = target // config.out_bytes + plane * shape.oh * shape.ow + start[0] * shape.ow + start[1]
    stream.store(result, dram, rows, columns, shape.ow)
