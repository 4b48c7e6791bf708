"""Direct convolution over blocked channels: a tile of the result stays in registers until it is complete.

For each input channel and each weight position one vector of weights a group of output channels is loaded, and one
pixel a column of the tile is broadcast; groups × rows × columns multiply-adds use them. Nothing is copied, so stride,
dilation and the border cost nothing. A dense layer is a convolution over one pixel, 1×1 is a matrix product.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.images import Image, Registers, argument, kernel, prefetch, ramp, splat
from targets.cpu.kernels.jobs import by_rows, split_job
from targets.cpu.kernels.lanes import ByLane, instructions, multiply_adds, multiply_adds_of_numbers
from targets.cpu.kernels.program import NOTHING, Bound, Program
from targets.cpu.layout import ImageType

#: The longest row of a window that is written out.
MAX_SPAN = 12

#: Tiles up to which it is worth while to have each bring a share of the next group's weights.
MAX_TAKERS = 64

#: Input channels that the innermost loop is written out for. With sixteen LLVM runs out of registers.
WRITTEN_OUT = 4


@dataclass(frozen=True, slots=True)
class Tile:
    """What one thread keeps in registers: so many blocks of output channels, rows and columns."""

    blocks: int
    rows: int
    columns: int
    #: Blocks of input channels whose weights a thread uses for all tiles of a strip before it goes on; it divides the
    #: number of whole blocks, or is 0 for all of them.
    #: Weights then come from memory at an even pace, where they would come in a burst for the first tile.
    depth: int = 0
    #: Rows of tiles in a strip.
    strip: int = 1


@dataclass(frozen=True, slots=True)
class Window:
    """A convolution's or a pool's window: sizes are (height, width), padding is top, left, bottom, right."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class DirectConv:
    """``x`` may be blocked or plain; ``y`` is blocked, and its number of blocks is a multiple of the tile's."""

    x: ImageType
    y: ImageType
    window: Window
    tile: Tile
    program: Program = NOTHING
    #: Groups of channels that are convolved apart. Each is whole blocks of the input and whole tiles of the output.
    groups: int = 1
    #: How a processor multiplies by one lane of a register: it then loads a block of a pixel's channels at once.
    by_lane: ByLane = ""


def pack(weights: npt.NDArray[np.float32], spec: DirectConv) -> npt.NDArray[np.float32]:
    """O, I / groups, KH, KW to O/(g·b), I/a, KH, KW, a, g, b: in the order in which the kernel reads them.

    ``a`` is the input's block, ``b`` the output's, ``g`` the tile's blocks; missing channels are zeros.
    """
    outputs, inputs, height, width = weights.shape
    a, b, g = spec.x.layout.block, spec.y.layout.block, spec.tile.blocks
    padded = np.zeros((spec.y.blocks * b, -(-inputs // a) * a, height, width), weights.dtype)
    padded[:outputs, :inputs] = weights
    parts = padded.reshape(spec.y.blocks // g, g, b, -(-inputs // a), a, height, width)
    return np.ascontiguousarray(parts.transpose(0, 3, 5, 6, 4, 1, 2))


def direct_conv(spec: DirectConv, name: str) -> Any:
    """Arguments: x, packed weights, the program's operands, y. Raises ValueError for a tile that does not fit."""

    def body() -> None:
        x = Image.argument("x", spec.x)
        weights = weights_argument(spec)
        program = Bound(spec.program)
        y = Image.argument("y", spec.y)
        compute = strips_of_tiles(spec, weights, program, y)
        groups, strips = spec.y.blocks // spec.tile.blocks, strip_count(spec)
        with T.parallel(0, groups * spec.y.shape[0] * strips) as job, instructions(spec.by_lane):
            n, group, strip = split_job(job, spec.y, groups, strips)
            compute(x, n, group, strip)

    return kernel(name, body)


def weights_argument(spec: DirectConv) -> Any:
    """The argument for what :func:`pack` gives."""
    a, b, g = spec.x.layout.block, spec.y.layout.block, spec.tile.blocks
    input_blocks = -(-(spec.x.shape[1] // spec.groups) // a)
    return argument("weights", (spec.y.blocks // g, input_blocks, *spec.window.kernel, a, g, b))


def row_tiles_of(spec: DirectConv) -> int:
    """Rows of tiles in the result."""
    return -(-spec.y.shape[2] // spec.tile.rows)


def strip_count(spec: DirectConv) -> int:
    """Strips in the result."""
    return -(-row_tiles_of(spec) // spec.tile.strip)


class Pixels(Protocol):
    """Where a convolution finds its input."""

    def scalar(self, n: Any, block: Any, y: Any, x: Any, lane: Any) -> Any:
        """One channel of one pixel."""

    def vector(self, n: Any, block: Any, y: Any, x: Any) -> Any:
        """A block of channels of one pixel."""


def strips_of_tiles(
    spec: DirectConv, weights: Any, program: Bound, y: Image
) -> Callable[[Pixels, Any, Any, Any], None]:
    """What computes one strip of a group of blocks of output channels; it is given the input, n, group and strip.

    Raises ValueError for a tile that does not fit.
    """
    (batch, channels, _, _), (_, _, out_height, out_width) = spec.x.shape, spec.y.shape
    channels //= spec.groups
    (kernel_h, kernel_w), (stride_h, stride_w) = spec.window.kernel, spec.window.stride
    (dilation_h, dilation_w), (top, left, _, _) = spec.window.dilation, spec.window.padding
    a, b = spec.x.layout.block, spec.y.layout.block
    tile = spec.tile
    # Of output blocks; each reads the input blocks of its own group of channels.
    per_group = spec.y.blocks // tile.blocks // spec.groups
    row_tiles, column_tiles = row_tiles_of(spec), -(-out_width // tile.columns)
    full_blocks, rest = divmod(channels, a)
    if tile.depth and full_blocks % tile.depth:
        raise ValueError(f"{tile} does not divide {full_blocks} blocks of input channels")
    input_blocks = -(-channels // a)
    once = any(operand.kind == "image" and operand.type == spec.y for operand in spec.program.operands)
    # Positions of the window in a row that are written out.
    span = max(n for n in range(1, MAX_SPAN + 1) if kernel_w % n == 0) if spec.by_lane and a == 1 else 1

    pixels = [(r, c) for r in range(tile.rows) for c in range(tile.columns)]

    def register(g: int, pixel: int) -> int:
        return g * len(pixels) + pixel

    strips = strip_count(spec)
    tiles = tile.strip * column_tiles
    sums_length = tile.blocks * len(pixels) * b
    depth = tile.depth or full_blocks
    waits = full_blocks > depth and tiles > 1
    # Tiles that a thread computes before it takes the next group of output channels.
    takers = tiles if by_rows(spec.y) else strips * tiles
    # Where threads divide the channels, weights come from memory: those of the next group while this one is used.
    streams = not waits and batch == 1 and 1 < takers <= MAX_TAKERS

    def compute(x: Pixels, n: Any, group: Any, strip: Any) -> None:
        first_block = group // per_group * input_blocks
        first_row_tile = tirx.min(strip * tile.strip, row_tiles - tile.strip)
        sums = Registers(tile.blocks * len(pixels), b)

        def corner(index: Any) -> tuple[Any, Any]:
            """First row and column of a tile. The last of a row or column is moved back to end with the picture."""
            row = tirx.min((first_row_tile + index // column_tiles) * tile.rows, out_height - tile.rows)
            return row, tirx.min(index % column_tiles * tile.columns, out_width - tile.columns)

        def clear() -> None:
            for index in range(tile.blocks * len(pixels)):
                sums[index] = splat(0.0, b)

        def fetch_ahead(weight: Any, index: Any, takers: int) -> None:
            """Bring a share of some weights that are needed next nearer: that of one tile, of so many."""
            lines = a * tile.blocks
            share = -(-lines // takers)
            with T.serial(0, share) as line:
                at = tirx.min(index * share + line, lines - 1)
                prefetch(weight(at // tile.blocks, at % tile.blocks))

        def multiply(row: Any, column: Any, block: Any, lanes: int, index: Any = None) -> None:
            """Add what a block of input channels gives to the strip's tile ``index``."""
            with T.serial(0, kernel_h) as ky, T.serial(0, kernel_w // span) as part:

                def at(pixel: int, k: int) -> tuple[Any, Any]:
                    (r, c), kx = pixels[pixel], part * span + k
                    return (
                        (row + r) * stride_h + ky * dilation_h - top,
                        (column + c) * stride_w + kx * dilation_w - left,
                    )

                def weight(lane: Any, g: int, k: int = 0) -> Any:
                    return weights[group, block, ky, part * span + k, lane, g, ramp(0, b)]

                def vector(pixel: int) -> Any:
                    return x.vector(n, first_block + block, *at(pixel, 0))

                def scalar(lane: Any, pixel: int, k: int = 0) -> Any:
                    return x.scalar(n, first_block + block, *at(pixel, k), lane)

                sizes = (b, tile.blocks, len(pixels))

                def next_weight(lane: Any, g: Any) -> Any:
                    next_group, next_block = (group, block + depth) if waits else (group + 1, block)
                    return weights[next_group, next_block, ky, part * span, lane, g, 0]

                if waits and index is not None:
                    fetch_ahead(next_weight, index, tiles)
                elif streams and index is not None:
                    fetch_ahead(next_weight, index if by_rows(spec.y) else strip * tiles + index, takers)
                if not spec.by_lane:
                    written = math.gcd(lanes, WRITTEN_OUT)
                    with T.serial(0, lanes // written) as step:
                        for lane, pixel, g in product(range(written), range(len(pixels)), range(tile.blocks)):
                            channel, index = step * written + lane, register(g, pixel)
                            factor = splat(scalar(channel, pixel), b)
                            sums[index] = sums[index] + factor * weight(channel, g)
                elif lanes == a > 1:
                    for _, g, pixel, add in multiply_adds(spec.by_lane, a, *sizes, weight, vector):
                        sums[register(g, pixel)] = add(sums[register(g, pixel)])
                else:
                    # Channels of a block that is not whole, or positions of the window in a plain picture.
                    for g, pixel, add in multiply_adds_of_numbers(
                        spec.by_lane,
                        lanes if a > 1 else span,
                        *sizes,
                        weight if a > 1 else lambda k, g: weight(0, g, k),
                        scalar if a > 1 else lambda k, pixel: scalar(0, pixel, k),
                    ):
                        sums[register(g, pixel)] = add(sums[register(g, pixel)])

        def finish(index: Any) -> None:
            row, column = corner(index)
            if rest:
                multiply(row, column, full_blocks, rest)
            for g in range(tile.blocks):
                for pixel, (r, c) in enumerate(pixels):
                    where = (n, group * tile.blocks + g, row + r, column + c)
                    with unless_overlapped(index, r, c):
                        y.put(*where, program(sums[register(g, pixel)], b, *where))

        @contextmanager
        def unless_overlapped(index: Any, r: int, c: int) -> Iterator[None]:
            """Where the result lies over an operand, a pixel is stored by one tile: another would add to the sum.

            It belongs to the first tile that has it, and tiles of a strip that was moved back to the one before.
            """
            row, column = corner(index)
            conditions = []
            if once and row_tiles % tile.strip:
                conditions.append(row + r >= strip * tile.strip * tile.rows)
            if once and r < -out_height % tile.rows:
                conditions.append(row + r >= (first_row_tile + index // column_tiles) * tile.rows)
            if once and c < -out_width % tile.columns:
                conditions.append(column + c >= index % column_tiles * tile.columns)
            if not conditions:
                yield
                return
            with T.If(functools.reduce(tirx.And, conditions)), T.Then():
                yield

        if not waits:
            with T.serial(0, tiles) as index:
                clear()
                if full_blocks:
                    with T.serial(0, full_blocks) as block:
                        multiply(*corner(index), block, a, index)
                finish(index)
        else:
            # Unfinished sums of a strip's tiles wait in the first-level cache.
            waiting = T.alloc_buffer((tiles * sums_length,))

            def put_aside(index: Any) -> None:
                for register in range(tile.blocks * len(pixels)):
                    T.buffer_store(waiting, sums[register], [ramp(index * sums_length + register * b, b)])

            def take_back(index: Any) -> None:
                for register in range(tile.blocks * len(pixels)):
                    sums[register] = waiting[ramp(index * sums_length + register * b, b)]

            clear()
            with T.serial(0, tiles) as index:
                put_aside(index)
            with T.serial(0, full_blocks // depth) as part, T.serial(0, tiles) as index:
                take_back(index)
                with T.serial(0, depth) as block:
                    multiply(*corner(index), part * depth + block, a, index)
                put_aside(index)
            with T.serial(0, tiles) as index:
                take_back(index)
                finish(index)
        for g in range(tile.blocks):
            with T.serial(0, tile.strip) as index:
                y.clear_border(n, group * tile.blocks + g, corner(index * column_tiles)[0], tile.rows)

    return compute
