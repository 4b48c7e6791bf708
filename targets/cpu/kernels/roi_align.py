"""RoIAlign (He et al. 2017, arXiv:1703.06870) over channels-last features: a vector holds channels of one point.

Where the points of a box lie is computed once for each row and each column of them. A cell's sums over a group of
channels stay in registers; squares of cells and channels are transposed on their way to the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.convert import transposed
from targets.cpu.kernels.images import Registers, argument, flat, kernel, ramp, rounded_product, splat

Expr = Any

#: Vectors of channels whose sums are in registers at a time.
VECTORS = 8
#: torchvision.ops.poolers.LevelMapper, after Lin et al. 2016 (arXiv:1612.03144), equation 1.
CANONICAL_SIZE, CANONICAL_LEVEL, LEVEL_EPS = 224, 4, 1e-6


@dataclass(frozen=True, slots=True)
class RoiAlign:
    """``torch.ops.fleet.roi_align``: ``levels`` are (H, W) of features (batch, H, W, channels), the finest first.

    ``sampling`` is positive, ``lanes`` at most the number of channels.
    """

    batch: int
    channels: int
    levels: tuple[tuple[int, int], ...]
    scales: tuple[float, ...]
    rois: int
    size: int
    sampling: int
    aligned: bool
    lanes: int


def first_areas(scales: tuple[float, ...]) -> list[float]:
    """The smallest area of a box, in float32, for each level but the first: equation 1 as torch rounds it."""
    lowest, highest = (round(-math.log2(scale)) for scale in (scales[0], scales[-1]))

    def level(bits: int) -> float:
        area = np.array(bits, np.uint32).view(np.float32)
        with np.errstate(divide="ignore"):
            exponent = np.log2(np.sqrt(area) / np.float32(CANONICAL_SIZE))
        return float(np.floor(np.float32(CANONICAL_LEVEL) + exponent + np.float32(LEVEL_EPS)))

    found = []
    for wanted in range(lowest + 1, highest + 1):
        # Positive floats are ordered as their bits are. The last finite one is of every level there can be.
        low, high = 0, 0x7F7FFFFF
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if level(middle) >= wanted else (middle + 1, high)
        found.append(float(np.array(low, np.uint32).view(np.float32)))
    return found


def roi_align(spec: RoiAlign, name: str) -> Any:
    """Arguments: features of each level, rois (rois, 5), y (rois, channels, size, size)."""
    cells, points, lanes = spec.size**2, spec.size * spec.sampling, spec.lanes
    vectors = min(VECTORS, spec.channels // lanes)
    group = vectors * lanes

    def body() -> None:
        features = [
            argument(f"features{index}", (spec.batch, *level, spec.channels)) for index, level in enumerate(spec.levels)
        ]
        rois = argument("rois", (spec.rois, 5))
        y = argument("y", (spec.rois, spec.channels, spec.size, spec.size))
        *planes, boxes, result = flat(*features, rois, y)
        with T.parallel(0, spec.rois) as roi:
            box = [T.bind(boxes[roi * 5 + 1 + index]) for index in range(4)]
            # What is no number reads somewhere.
            last = splat(float(spec.batch - 1), 1)
            picture = T.bind(tirx.Cast("int32", tirx.min(tirx.max(boxes[roi * 5], splat(0.0, 1)), last)))
            sums = T.alloc_buffer((cells * group,))
            axes = [_Axis(points) for _ in range(2)]
            area = rounded_product(box[2] - box[0], box[3] - box[1], 1)

            def pool(level: int) -> None:
                height, width = spec.levels[level]
                for axis, extent, index in zip(axes, (height, width), (1, 0), strict=True):
                    axis.place(spec, box[index], box[index + 2], spec.scales[level], extent)
                rows, columns = axes
                base = T.bind(picture * height)
                with T.serial(0, -(-spec.channels // group)) as part:
                    first = T.bind(tirx.min(part * group, spec.channels - group))
                    with T.serial(0, spec.size) as cell_y, T.serial(0, spec.size) as cell_x:
                        total = Registers(vectors, lanes)
                        for index in range(vectors):
                            total[index] = splat(0.0, lanes)
                        with T.serial(0, spec.sampling) as sub_y, T.serial(0, spec.sampling) as sub_x:
                            row, column = cell_y * spec.sampling + sub_y, cell_x * spec.sampling + sub_x
                            for v in range(2):
                                for h in range(2):
                                    weight = T.bind(splat(rows.weights[v][row] * columns.weights[h][column], lanes))
                                    line = (base + rows.places[v][row]) * width + columns.places[h][column]
                                    at = T.bind(line * spec.channels + first)
                                    for index in range(vectors):
                                        value = planes[level][ramp(at + index * lanes, lanes)]
                                        total[index] = total[index] + weight * value
                        to = T.bind((cell_y * spec.size + cell_x) * group)
                        for index in range(vectors):
                            mean = total[index] * splat(1 / spec.sampling**2, lanes)
                            T.buffer_store(sums, mean, [ramp(to + index * lanes, lanes)])
                    _put(sums, group, result, (roi * spec.channels + first) * cells, cells, lanes)

            _at_level(first_areas(spec.scales) if len(spec.levels) > 1 else [], area, pool)

    return kernel(name, body)


def _at_level(areas: list[float], area: Expr, pool: Callable[[int], None], level: int = 0) -> None:
    """``pool(level)`` for the level of a box of this area."""
    if level == len(areas):
        pool(level)
        return
    with T.If(area >= splat(areas[level], 1)):
        with T.Then():
            _at_level(areas, area, pool, level + 1)
        with T.Else():
            pool(level)


class _Axis:
    """Along one side of a box: for each point the two places in a row of features that it is between, and weights."""

    def __init__(self, points: int) -> None:
        self.places = [T.alloc_buffer((points,), "int32") for _ in range(2)]
        self.weights = [T.alloc_buffer((points,)) for _ in range(2)]

    def place(self, spec: RoiAlign, start: Expr, end: Expr, scale: float, extent: int) -> None:
        """Each step rounds as torchvision's does: at the border of the features a point counts or does not."""
        zero, one, half = (splat(number, 1) for number in (0.0, 1.0, 0.5))
        shift, last = splat(0.5 if spec.aligned else 0.0, 1), splat(float(extent - 1), 1)
        start, end = (T.bind(rounded_product(each, splat(scale, 1), 1) - shift) for each in (start, end))
        side = end - start if spec.aligned else tirx.max(end - start, one)
        step = T.bind(side / splat(float(spec.size), 1))
        with T.serial(0, spec.size) as cell, T.serial(0, spec.sampling) as sub:
            index = cell * spec.sampling + sub
            inside = rounded_product(tirx.Cast("float32", sub) + half, step, 1) / splat(float(spec.sampling), 1)
            at = T.bind(start + rounded_product(tirx.Cast("float32", cell), step, 1) + inside)
            counts = tirx.all(at >= splat(-1.0, 1), at <= splat(float(extent), 1))
            within = T.bind(tirx.min(tirx.max(at, zero), last))
            low = T.bind(tirx.Cast("int32", within))
            further = T.bind(within - tirx.Cast("float32", low))
            T.buffer_store(self.places[0], low, [index])
            T.buffer_store(self.places[1], tirx.min(low + 1, extent - 1), [index])
            T.buffer_store(self.weights[0], tirx.Select(counts, one - further, zero), [index])
            T.buffer_store(self.weights[1], tirx.Select(counts, further, zero), [index])


def _put(sums: Any, group: int, result: Any, first: Expr, cells: int, lanes: int) -> None:
    """Cells of channels to channels of cells."""
    if cells < lanes or lanes == 1:
        with T.serial(0, group) as channel, T.serial(0, cells) as cell:
            T.buffer_store(result, sums[cell * group + channel], [first + channel * cells + cell])
        return
    with T.serial(0, group // lanes) as vector, T.serial(0, -(-cells // lanes)) as square:
        start = T.bind(tirx.min(square * lanes, cells - lanes))
        rows = [T.bind(sums[ramp((start + cell) * group + vector * lanes, lanes)]) for cell in range(lanes)]
        for channel, row in enumerate(transposed(rows)):
            T.buffer_store(result, row, [ramp(first + (vector * lanes + channel) * cells + start, lanes)])
