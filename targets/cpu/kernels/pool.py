"""Maximum and average pools over blocked pictures.

Neither reads a border: above and below, the loop over the window's rows is shortened; left and right, the few columns
whose window leaves the picture are written out, each with the positions that it has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.direct import Window
from targets.cpu.kernels.images import Image, Registers, kernel, splat
from targets.cpu.kernels.jobs import jobs, rows_per_job, size_bytes, split_job
from targets.cpu.kernels.program import NOTHING, Bound, Program
from targets.cpu.layout import ImageType

Expr = Any

#: Columns of the input whose maximum or sum over the window's rows is held in registers at once.
HELD = 12


@dataclass(frozen=True, slots=True)
class Pool:
    """``x`` and ``y`` are blocked. ``y``'s size says whether the last windows reach beyond the padding (ceil mode)."""

    x: ImageType
    y: ImageType
    kind: Literal["max", "average"]
    window: Window
    #: Whether padding counts in an average; what a window covers beyond the padding never does.
    count_include_pad: bool = True
    program: Program = NOTHING


@dataclass(frozen=True, slots=True)
class GlobalAverage:
    """``y`` is N, C, 1, 1: the mean of each channel."""

    x: ImageType
    y: ImageType
    program: Program = NOTHING


def pool(spec: Pool, name: str) -> Any:
    """Arguments: x, the program's operands, y. Of a window with a NaN the maximum may be another of its numbers.

    Raises ValueError when y is no pool of x, when an average has no number to count, or dilation.
    """
    (batch, channels, height, width), lanes = spec.x.shape, spec.x.layout.block
    _, _, out_height, out_width = spec.y.shape
    window = spec.window
    (kernel_h, kernel_w), (stride_h, stride_w), (dilation_h, dilation_w) = window.kernel, window.stride, window.dilation
    top, left, bottom, right = window.padding
    if spec.y.shape[:2] != (batch, channels) or spec.y.layout.block != lanes:
        raise ValueError(f"{spec.y} is no pool of {spec.x}")
    average = spec.kind == "average"
    if average and window.dilation != (1, 1):
        raise ValueError("an average pool with dilation is not defined")
    combine: Callable[[Expr, Expr], Expr] = (lambda a, b: a + b) if average else tirx.max
    # A maximum of integers is one of them: it is found and stored as it is.
    dtype = "float32" if average else spec.x.dtype
    nothing: float = 0.0 if average or dtype != "float32" else float("-inf")
    if dtype != "float32":
        nothing = int(np.iinfo(dtype).min)
    row_counts = [_count(y * stride_h - top, kernel_h, height, bottom, spec) for y in range(out_height)]
    column_counts = [_count(x * stride_w - left, kernel_w, width, right, spec) for x in range(out_width)]
    if average and min(row_counts + column_counts) < 1:
        raise ValueError(f"{spec.y} has windows that lie outside of {spec.x} and its padding")

    # Columns of the result that have a whole window, and tiles of them whose windows share columns of the input.
    whole_from = min(-(-left // stride_w), out_width)
    whole_to = max(whole_from, min(out_width, (width - 1 + left - (kernel_w - 1) * dilation_w) // stride_w + 1))
    columns = _tile(whole_to - whole_from, kernel_w, stride_w, dilation_w)
    blocks = spec.x.blocks
    rows = rows_per_job(spec.y, out_height, blocks)
    strips = out_height // rows

    def body() -> None:
        x = Image.argument("x", spec.x)
        program = Bound(spec.program)
        y = Image.argument("y", spec.y)

        with jobs(batch * blocks * strips, size_bytes(spec.x) + size_bytes(spec.y)) as job:
            n, block, strip = split_job(job, spec.y, blocks, strips)
            first = strip * rows
            held = Registers(HELD, lanes, dtype)
            with T.serial(0, rows) as r:
                row = first + r
                start = row * stride_h - top
                # The window's rows that lie in the picture.
                ky_from: Expr = tirx.max(0, (dilation_h - 1 - start) // dilation_h) if top else 0
                ky_to: Expr = kernel_h
                if (out_height - 1) * stride_h - top + (kernel_h - 1) * dilation_h >= height:
                    ky_to = tirx.min(kernel_h, (height - start + dilation_h - 1) // dilation_h)
                row_count: Expr = row_counts[0]
                if len(set(row_counts)) > 1:
                    end = tirx.min(start + kernel_h, height + (bottom if spec.count_include_pad else 0))
                    row_count = end - (start if spec.count_include_pad else tirx.max(start, 0))

                def over_rows(positions: Sequence[Expr]) -> list[Expr]:
                    """Maximum or sum of each of these columns of the input over the window's rows."""
                    for i in range(len(positions)):
                        held[i] = splat(nothing, lanes, dtype)
                    with T.serial(ky_from, ky_to) as ky:
                        for i, position in enumerate(positions):
                            value = (x.floats if average else x.vector)(n, block, start + ky * dilation_h, position)
                            held[i] = combine(held[i], value)
                    return [held[i] for i in range(len(positions))]

                def put(column: Expr, columns_of_it: Sequence[Expr], count: int) -> None:
                    value = functools.reduce(combine, columns_of_it)
                    if average:
                        total = tirx.Cast("float32", tirx.const(1, "int32") * row_count * count)
                        value = value * splat(T.bind(1.0 / total), lanes)
                    value = program(value, lanes, n, block, row, column) if dtype == "float32" else value
                    y.put(n, block, row, column, value)

                def alone(column: Expr, positions: Sequence[Expr], count: int) -> None:
                    """One column of the result; what has been found of a wide window is kept in a variable."""
                    found: list[Expr] = []
                    for i in range(0, len(positions), HELD):
                        found = [T.bind(functools.reduce(combine, [*found, *over_rows(positions[i : i + HELD])]))]
                    put(column, found or [splat(nothing, lanes, dtype)], count)

                def edge(column: int) -> None:
                    window_columns = [column * stride_w - left + kx * dilation_w for kx in range(kernel_w)]
                    alone(column, [at for at in window_columns if 0 <= at < width], column_counts[column])

                for column in range(whole_from):
                    edge(column)
                if columns:
                    with T.serial(0, -(-(whole_to - whole_from) // columns)) as tile:
                        column = whole_from + tirx.min(tile * columns, whole_to - whole_from - columns)
                        origin = column * stride_w - left
                        needed = _needed(columns, kernel_w, stride_w, dilation_w)
                        count = column_counts[whole_from]
                        if len(needed) > HELD:
                            alone(column, [origin + at for at in needed], count)
                        else:
                            values = dict(zip(needed, over_rows([origin + at for at in needed]), strict=True))
                            for c in range(columns):
                                at = [values[c * stride_w + kx * dilation_w] for kx in range(kernel_w)]
                                put(column + c, at, count)
                for column in range(whole_to, out_width):
                    edge(column)
            y.clear_border(n, block, first, rows)

    return kernel(name, body)


def _count(start: int, size: int, extent: int, after: int, spec: Pool) -> int:
    """Positions that count for an average, of a window that covers ``size`` from ``start`` on."""
    if spec.count_include_pad:
        return min(start + size, extent + after) - start
    return min(start + size, extent) - max(start, 0)


def _needed(columns: int, size: int, stride: int, dilation: int) -> list[int]:
    """Columns of the input that neighbouring columns of the result need, from the first one's on."""
    return sorted({column * stride + k * dilation for column in range(columns) for k in range(size)})


def _tile(columns: int, size: int, stride: int, dilation: int) -> int:
    """How many columns of the result are computed at once: as many as registers hold the input of, in even tiles."""
    if not columns:
        return 0
    most = max((c for c in range(1, HELD + 1) if len(_needed(c, size, stride, dilation)) <= HELD), default=1)
    return -(-columns // -(-columns // most))


def global_average(spec: GlobalAverage, name: str) -> Any:
    """Arguments: x, the program's operands, y. Raises ValueError when y is not N, C, 1, 1 in x's blocks."""
    (batch, channels, height, width), lanes = spec.x.shape, spec.x.layout.block
    if spec.y.shape != (batch, channels, 1, 1) or spec.y.layout.block != lanes:
        raise ValueError(f"{spec.y} is no mean over the pixels of {spec.x}")
    blocks = spec.x.blocks
    # Several sums at once: one alone would wait for each addition to be done.
    sums = min(width, 8)
    whole = width // sums * sums

    def body() -> None:
        x = Image.argument("x", spec.x)
        program = Bound(spec.program)
        y = Image.argument("y", spec.y)
        with jobs(batch * blocks, size_bytes(spec.x)) as job:
            n, block = job // blocks, job % blocks
            total = Registers(sums, lanes)
            for i in range(sums):
                total[i] = splat(0.0, lanes)
            with T.serial(0, height) as row:

                def add(column: Expr, count: int) -> None:
                    for i in range(count):
                        total[i] = total[i] + x.floats(n, block, row, column + i)

                with T.serial(0, whole // sums) as part:
                    add(part * sums, sums)
                add(whole, width - whole)
            mean = functools.reduce(lambda a, b: a + b, [total[i] for i in range(sums)])
            value = mean * splat(1.0 / (height * width), lanes)
            y.put(n, block, 0, 0, program(value, lanes, n, block, 0, 0))
            y.clear_border(n, block, 0, 1)

    return kernel(name, body)
