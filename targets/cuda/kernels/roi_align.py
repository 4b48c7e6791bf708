"""RoIAlign on the level of a pyramid that fits each box, as ``targets.detection.operators.roi_align`` defines it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.images import argument, kernel
from targets.cuda.kernels.blocks import each, f32, grid, product

Expr = Any

#: `targets.detection.operators`, which only torch can import.
CANONICAL_SIZE, CANONICAL_LEVEL, LEVEL_EPS = 224, 4, 1e-6
_THREADS = 128


@dataclass(frozen=True, slots=True)
class RoiAlign:
    """Shapes and parameters of the operator. ``features``: the shape (N, H, W, C) of each level."""

    features: tuple[tuple[int, int, int, int], ...]
    rois: int
    scales: tuple[float, ...]
    size: int
    sampling: int
    aligned: bool


def roi_align(spec: RoiAlign, name: str) -> Any:
    """Arguments: each level's features, rois (R, 5), result (R, C, size, size).

    A block is one row of cells of one box. Its threads are channels, which lie side by side in memory.
    """
    channels = spec.features[0][3]

    def body() -> None:
        levels = [argument(f"level{number}", shape) for number, shape in enumerate(spec.features)]
        rois = argument("rois", (spec.rois, 5))
        result = argument("result", (spec.rois, channels, spec.size, spec.size))
        with grid(spec.rois * spec.size, _THREADS) as (block, thread):
            roi, row = block // spec.size, block % spec.size
            picture = T.bind(tirx.Cast("int32", rois[roi, 0]))
            corners = [T.bind(rois[roi, 1 + side]) for side in range(4)]
            level = T.bind(_level(spec, corners))
            for number, features in enumerate(levels):
                with (
                    T.If(level == number),
                    T.Then(),
                    each(channels, thread, _THREADS) as channel,
                    T.serial(0, spec.size) as column,
                ):
                    cell = _cell(spec, number, features, picture, corners, row, column, channel)
                    T.buffer_store(result, cell, [roi, channel, row, column])

    return kernel(name, body)


def _level(spec: RoiAlign, corners: list[Expr]) -> Expr:
    if len(spec.features) == 1:
        return tirx.const(0, "int32")
    lowest, highest = (round(-math.log2(scale)) for scale in (spec.scales[0], spec.scales[-1]))
    side = tirx.sqrt(product(corners[2] - corners[0], corners[3] - corners[1]))
    level = tirx.floor(f32(CANONICAL_LEVEL) + (tirx.log2(side / f32(CANONICAL_SIZE)) + f32(0.0)) + f32(LEVEL_EPS))
    clamped = tirx.max(tirx.min(level, f32(highest)), f32(lowest))
    return tirx.Cast("int32", clamped) - lowest


def _cell(
    spec: RoiAlign,
    number: int,
    features: Any,
    picture: Expr,
    corners: list[Expr],
    row: Expr,
    column: Expr,
    channel: Expr,
) -> Expr:
    """The mean of a cell's points."""
    _, height, width, _ = spec.features[number]
    scale, half = f32(spec.scales[number]), f32(0.5 if spec.aligned else 0.0)
    starts = [product(corners[axis], scale) - half for axis in (0, 1)]
    lengths = [product(corners[axis + 2], scale) - half - starts[axis] for axis in (0, 1)]
    if not spec.aligned:
        lengths = [tirx.max(length, f32(1.0)) for length in lengths]
    cells = [T.bind(length / f32(spec.size)) for length in lengths]
    total = T.alloc_buffer((1,), "float32", scope="local")
    T.buffer_store(total, f32(0.0), [0])
    with T.serial(0, spec.sampling) as down, T.serial(0, spec.sampling) as across:
        y = T.bind(_point(starts[1], cells[1], row, down, spec.sampling))
        x = T.bind(_point(starts[0], cells[0], column, across, spec.sampling))
        inside = tirx.all(y >= f32(-1.0), y <= f32(height), x >= f32(-1.0), x <= f32(width))
        with T.If(inside), T.Then():
            top, bottom, low_y, high_y = _between(y, height)
            left, right, low_x, high_x = _between(x, width)
            value = (
                product(product(low_y, low_x), features[picture, top, left, channel])
                + product(product(low_y, high_x), features[picture, top, right, channel])
                + product(product(high_y, low_x), features[picture, bottom, left, channel])
                + product(product(high_y, high_x), features[picture, bottom, right, channel])
            )
            T.buffer_store(total, total[0] + value, [0])
    return total[0] / f32(spec.sampling * spec.sampling)


def _point(start: Expr, cell: Expr, index: Expr, point: Expr, sampling: int) -> Expr:
    place = tirx.Cast("float32", point) + f32(0.5)
    return start + product(tirx.Cast("float32", index), cell) + product(place, cell) / f32(sampling)


def _between(at: Expr, size: int) -> tuple[Expr, Expr, Expr, Expr]:
    """The two cells that a coordinate lies between, and the share of each."""
    at = T.bind(tirx.max(at, f32(0.0)))
    low = T.bind(tirx.min(tirx.Cast("int32", at), size - 1))
    high = T.bind(tirx.min(low + 1, size - 1))
    part = T.bind(tirx.Select(low >= size - 1, f32(0.0), at - tirx.Cast("float32", low)))
    return low, high, f32(1.0) - part, part
