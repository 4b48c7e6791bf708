"""A depthwise convolution and the 1×1 convolution of what it gives, as one kernel.

A job computes some rows of the depthwise result into scratch, which stays in the cache, and from them all channels of
the same rows of the last result. What is between is never stored as a whole, and nothing is computed twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels import depthwise, direct
from targets.cpu.kernels.depthwise import Depthwise
from targets.cpu.kernels.direct import DirectConv
from targets.cpu.kernels.images import Image, kernel
from targets.cpu.kernels.lanes import instructions
from targets.cpu.kernels.program import Bound
from targets.cpu.layout import ImageType

Expr = Any


@dataclass(frozen=True, slots=True)
class Separable:
    """``depthwise`` gives single rows of what ``pointwise`` reads, and its program reads numbers of channels alone.

    A strip of ``pointwise``'s tiles is a job.
    """

    depthwise: Depthwise
    pointwise: DirectConv


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one picture, from row ``first`` of it on, with the coordinates of the whole."""

    image: Image
    first: Expr

    def scalar(self, n: Expr, block: Expr, y: Expr, x: Expr, lane: Expr) -> Expr:
        """One channel of one pixel."""
        return self.image.scalar(0, block, y - self.first, x, lane)

    def vector(self, n: Expr, block: Expr, y: Expr, x: Expr) -> Expr:
        """A block of channels of one pixel."""
        return self.image.vector(0, block, y - self.first, x)


def scratch(spec: Separable) -> ImageType:
    """The picture of the rows that a job computes."""
    _, channels, height, width = spec.depthwise.y.shape
    tile = spec.pointwise.tile
    return ImageType((1, channels, min(tile.rows * tile.strip, height), width), spec.depthwise.y.layout)


def separable(spec: Separable, name: str) -> Any:
    """Arguments: x, packed depthwise weights, its program's operands, packed 1×1 weights, the operands, y.

    Raises ValueError where the two do not fit each other, or a tile does not fit its picture.
    """
    first, last = spec.depthwise, spec.pointwise
    window = last.window
    if first.y != last.x or first.rows != 1 or first.y.layout.bordered:
        raise ValueError(f"{first} does not give rows of what {last} reads")
    if (window.kernel, window.stride, any(window.padding), last.groups) != ((1, 1), (1, 1), False, 1):
        raise ValueError(f"{last} reads more than a pixel for each of its own")
    (batch, _, height, width), blocks, tile = first.y.shape, first.y.blocks, last.tile
    part, strips = scratch(spec), direct.strip_count(last)
    rows, column_tiles = part.shape[2], math.ceil(width / first.columns)

    def body() -> None:
        x = Image.argument("x", first.x)
        depthwise_weights = depthwise.weights_argument(first, "depthwise_weights")
        depthwise_program = Bound(first.program, "depthwise_operand")
        weights = direct.weights_argument(last)
        program = Bound(last.program)
        y = Image.argument("y", last.y)
        give = depthwise.tiles(first, x, depthwise_weights, depthwise_program)
        take = direct.strips_of_tiles(last, weights, program, y)

        with T.parallel(0, batch * strips) as job, instructions(last.by_lane):
            n, strip = job // strips, job % strips
            # The last strip, and the last tile in it, end with the picture.
            start = tirx.min(strip * tile.strip * tile.rows, height - rows)
            between = _Rows(Image(part, T.alloc_buffer(part.physical)), start)

            with T.serial(0, blocks) as block, T.serial(0, rows) as row, T.serial(0, column_tiles) as column_tile:

                def store(at: Expr, column: Expr, value: Expr) -> None:
                    between.image.put(0, block, at - start, column, value)

                column = tirx.min(column_tile * first.columns, width - first.columns)
                give(n, block, start + row, column, store)
            with T.serial(0, last.y.blocks // tile.blocks) as group:
                take(between, n, group, strip)

    return kernel(name, body)
