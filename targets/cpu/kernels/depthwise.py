"""Depthwise convolution over blocked channels: each channel has a window of its own.

A vector holds neighbouring channels of a pixel, so a multiply-add needs no broadcast. For each row of the window its
weights stay in registers, and each pixel that is loaded goes into all the sums of the tile that it has a part in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.direct import Window
from targets.cpu.kernels.images import Image, Registers, argument, kernel, ramp, splat
from targets.cpu.kernels.jobs import jobs, rows_per_job, size_bytes, split_job
from targets.cpu.kernels.program import NOTHING, Bound, Program
from targets.cpu.layout import ImageType
from targets.cpu.processors import Processor

Expr = Any

#: Weights of a window's row that are held in registers at once.
HELD = 8
#: Cycles from the start of a multiply-add to its sum.
LATENCY = 4


@dataclass(frozen=True, slots=True)
class Depthwise:
    """``x`` and ``y`` have the same channels in the same blocks; ``x``'s border is the padding. ``rows`` × ``columns``
    sums are in registers."""

    x: ImageType
    y: ImageType
    window: Window
    rows: int
    columns: int
    program: Program = NOTHING


def plan(x: ImageType, y: ImageType, window: Window, program: Program, processor: Processor) -> Depthwise:
    """The tile that takes the fewest cycles. Raises ValueError when y's channels are not x's."""
    return min(plans(x, y, window, program, processor), key=lambda spec: cycles(spec, processor))


def plans(x: ImageType, y: ImageType, window: Window, program: Program, processor: Processor) -> Iterator[Depthwise]:
    """Every tile that fits the processor's registers. Raises ValueError when y's channels are not x's."""
    if x.shape[:2] != y.shape[:2] or x.layout.block != y.layout.block:
        raise ValueError(f"{y} has other channels than {x}, or other blocks")
    for rows, columns in _tiles(y, window, processor):
        yield Depthwise(x, y, window, rows, columns, program)


def _tiles(y: ImageType, window: Window, processor: Processor) -> Iterator[tuple[int, int]]:
    _, _, height, width = y.shape
    # Besides the sums: a row of weights, the pixel that is being added, and a number of the program's.
    room = max(1, processor.registers - min(window.kernel[1], HELD) - 2)
    for rows, columns in itertools.product(range(1, min(height, 4) + 1), range(1, min(width, room) + 1)):
        if rows * columns <= room:
            yield rows, columns


def cycles(spec: Depthwise, processor: Processor) -> float:
    """What one block of channels of one picture takes."""
    (_, _, height, width), (kernel_h, kernel_w) = spec.y.shape, spec.window.kernel
    multiplications = kernel_h * kernel_w * spec.rows * spec.columns
    loads = kernel_h * (kernel_w + spec.rows * len(_needed(spec)))
    # The tiles are independent, so a processor that looks ahead fills some of the time that sums wait for each other;
    # and it is the small tiles that it sees far enough beyond. Seven or eight sums were best with 4, 8 and 16 lanes.
    waiting = kernel_h * kernel_w * LATENCY * 0.75
    taken = max(multiplications / processor.fma_per_cycle, loads / processor.loads_per_cycle, waiting)
    taken *= 1 + 0.01 * max(0, spec.rows * spec.columns - LATENCY * 2)
    return (taken + 0.05 * loads) * -(-height // spec.rows) * -(-width // spec.columns)


def _needed(spec: Depthwise) -> list[int]:
    """Columns of the input that a tile reads, from its first column's window on."""
    stride, dilation = spec.window.stride[1], spec.window.dilation[1]
    return sorted({c * stride + k * dilation for c in range(spec.columns) for k in range(spec.window.kernel[1])})


def pack(weights: npt.NDArray[np.float32], spec: Depthwise) -> npt.NDArray[np.float32]:
    """C, 1, KH, KW to C/b, KH, KW, b; missing channels are zeros."""
    channels, _, height, width = weights.shape
    blocks, lanes = spec.y.blocks, spec.y.layout.block
    padded = np.zeros((blocks * lanes, height, width), weights.dtype)
    padded[:channels] = weights[:, 0]
    return np.ascontiguousarray(padded.reshape(blocks, lanes, height, width).transpose(0, 2, 3, 1))


def depthwise(spec: Depthwise, name: str) -> Any:
    """Arguments: x, packed weights, the program's operands, y. Raises ValueError for a tile larger than the picture."""
    batch, _, height, width = spec.y.shape
    row_tiles, column_tiles = -(-height // spec.rows), -(-width // spec.columns)
    taken = rows_per_job(spec.y, row_tiles, spec.y.blocks)
    strips = row_tiles // taken
    touched = size_bytes(spec.x) + size_bytes(spec.y)

    def body() -> None:
        x = Image.argument("x", spec.x)
        weights = weights_argument(spec)
        program = Bound(spec.program)
        y = Image.argument("y", spec.y)
        tile = tiles(spec, x, weights, program)

        with jobs(batch * spec.y.blocks * strips, touched) as job:
            n, block, strip = split_job(job, spec.y, spec.y.blocks, strips)

            def store(row: Expr, column: Expr, value: Expr) -> None:
                y.put(n, block, row, column, value)

            with T.serial(0, taken) as row_tile:
                # The last tile of a row or column is moved back so that it ends with the picture.
                row = tirx.min((strip * taken + row_tile) * spec.rows, height - spec.rows)
                with T.serial(0, column_tiles) as column_tile:
                    tile(n, block, row, tirx.min(column_tile * spec.columns, width - spec.columns), store)
                y.clear_border(n, block, row, spec.rows)

    return kernel(name, body)


def weights_argument(spec: Depthwise, name: str = "weights") -> Any:
    """The argument for what :func:`pack` gives."""
    return argument(name, (spec.y.blocks, *spec.window.kernel, spec.y.layout.block))


def tiles(
    spec: Depthwise, x: Image, weights: Any, program: Bound
) -> Callable[[Expr, Expr, Expr, Expr, Callable[[Expr, Expr, Expr], None]], None]:
    """What computes one tile of a block, given picture, block, its first row and column, and what stores a pixel.

    Raises ValueError for a tile larger than the picture.
    """
    _, _, height, width = spec.y.shape
    if spec.rows > height or spec.columns > width:
        raise ValueError(f"a tile of {spec.rows} x {spec.columns} does not fit {spec.y}")
    lanes, rows, columns, window = spec.y.layout.block, spec.rows, spec.columns, spec.window
    (kernel_h, kernel_w), (stride_h, stride_w), (dilation_h, dilation_w) = window.kernel, window.stride, window.dilation
    top, left, _, _ = window.padding
    pixels = list(itertools.product(range(rows), range(columns)))

    def compute(n: Expr, block: Expr, row: Expr, column: Expr, store: Callable[[Expr, Expr, Expr], None]) -> None:
        sums = Registers(rows * columns, lanes)

        def add_row(r: int, held: dict[int, Expr], at: Expr, origin: Expr) -> None:
            takers_of: dict[int, list[tuple[int, int]]] = {}
            for c, kx in itertools.product(range(columns), held):
                takers_of.setdefault(kx * dilation_w + c * stride_w, []).append((c, kx))
            for position, takers in sorted(takers_of.items()):
                pixel = T.bind(x.vector(n, block, at, origin + position))
                for c, kx in takers:
                    sums[r * columns + c] = sums[r * columns + c] + pixel * held[kx]

        for index in range(len(pixels)):
            sums[index] = splat(0.0, lanes)
        with T.serial(0, kernel_h) as ky:
            for first in range(0, kernel_w, HELD):
                part = range(first, min(first + HELD, kernel_w))
                held = {kx: T.bind(weights[block, ky, kx, ramp(0, lanes)]) for kx in part}
                for r in range(rows):
                    add_row(r, held, (row + r) * stride_h + ky * dilation_h - top, column * stride_w - left)
        for index, (r, c) in enumerate(pixels):
            store(row + r, column + c, program(sums[index], lanes, n, block, row + r, column + c))

    return compute
