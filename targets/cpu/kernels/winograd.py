"""3×3 convolution by Winograd's minimal filtering: F(4, 3) takes a quarter of the multiplications, F(2, 3) four ninths.

A tile of (m + 2)² inputs is transformed to as many positions, for each position a matrix product over the channels
follows, and (m + 2)² products are transformed to m² outputs. Weights stay 3×3 in memory and are transformed on the way,
so that a network takes no more memory than with direct convolution; what is transformed lives in scratch that is sized
to stay in cache. What is transformed once and used often depends on the picture, hence three :data:`Order`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels import winograd_transforms as transforms
from targets.cpu.kernels.images import Image, Registers, argument, kernel, prefetch, ramp, splat
from targets.cpu.kernels.lanes import ByLane, instructions, multiply_add, multiply_adds
from targets.cpu.kernels.program import NOTHING, Bound, Program
from targets.cpu.layout import ImageType

Expr = Any

#: ``groups``: strip after strip, all threads transform its inputs, then divide the output channels; each transforms the
#: weights of its own. ``strips``: all weights are transformed first, then the threads divide the strips.
#: ``registers``: for a handful of tiles: transformed weights are used at once and never stored.
Order = Literal["groups", "strips", "registers"]

#: Bytes of a cache line, and of the float that everything here is.
LINE = 64
FLOAT = 4


@dataclass(frozen=True, slots=True)
class WinogradTile:
    """How the work is cut. A job of ``groups`` and ``registers`` is a group of outputs and a part of a strip."""

    order: Order
    #: Blocks of output channels, and tiles, of one matrix product in registers. ``registers`` has one block.
    blocks: int
    tiles: int
    #: Tiles whose transformed inputs are in scratch at once; not more than there are.
    strip: int
    #: Tiles of a strip whose products are in scratch at once; from ``tiles`` to ``strip``.
    part: int
    #: Blocks of input channels whose weights are transformed at once; divides the input's. ``strips`` has all; where
    #: ``groups`` has fewer, ``tiles`` divides ``part``: a register tile that overlaps another would add twice.
    depth: int


@dataclass(frozen=True, slots=True)
class WinogradConv:
    """Stride 1, dilation 1, one group. ``y`` is at least m × m; the border of ``x`` holds the padding."""

    x: ImageType
    y: ImageType
    #: Top, left, bottom, right.
    padding: tuple[int, int, int, int]
    #: Outputs of a tile in each dimension: 2 or 4.
    m: int
    tile: WinogradTile
    program: Program = NOTHING
    #: Processors that multiply by one lane of a register (ARM) load a block of a tile's channels at once.
    by_lane: ByLane = ""

    @property
    def tile_rows(self) -> int:
        return -(-self.y.shape[2] // self.m)

    @property
    def tile_columns(self) -> int:
        return -(-self.y.shape[3] // self.m)

    @property
    def tiles(self) -> int:
        """Tiles of all pictures."""
        return self.y.shape[0] * self.tile_rows * self.tile_columns

    @property
    def scratch_bytes(self) -> tuple[int, int]:
        """Scratch that all threads share, and scratch of each."""
        a, b, positions = self.x.layout.block, self.y.layout.block, (self.m + 2) ** 2
        inputs = positions * _stride(self.x.blocks * self.tile.strip * a)
        weights = _stride(self.tile.depth * a * self.tile.blocks * b)
        products = positions * _stride(self.tile.part * self.tile.blocks * b)
        if self.tile.order == "strips":
            return positions * weights * (self.y.blocks // self.tile.blocks) * FLOAT, (inputs + products) * FLOAT
        own = products + ((self.m + 2) * weights if self.tile.order == "groups" else 0)
        return inputs * FLOAT, own * FLOAT


def pack(weights: npt.NDArray[np.float32], spec: WinogradConv) -> npt.NDArray[np.float32]:
    """O, I, 3, 3 to O/(g·b), I, 3·3·g·b: in the order in which the kernel reads them.

    ``b`` is the output's block, ``g`` the tile's blocks. I is rounded up to blocks; missing channels are zeros.
    """
    count, channels = weights.shape[:2]
    a, b, g = spec.x.layout.block, spec.y.layout.block, spec.tile.blocks
    padded = np.zeros((spec.y.blocks * b, spec.x.blocks * a, 3, 3), weights.dtype)
    padded[:count, :channels] = weights
    parts = padded.reshape(spec.y.blocks // g, g, b, spec.x.blocks * a, 3, 3).transpose(0, 3, 4, 5, 1, 2)
    return np.ascontiguousarray(parts).reshape(spec.y.blocks // g, spec.x.blocks * a, 9 * g * b)


def winograd_conv(spec: WinogradConv, name: str) -> Any:
    """Arguments: x, packed weights, the program's operands, y."""
    return kernel(name, lambda: _Emitter(spec).emit())


def _stride(values: int) -> int:
    """So many values in whole cache lines, an odd number of them: positions then do not compete for one cache set."""
    lines = -(-values * FLOAT // LINE)
    return (lines + 1 - lines % 2) * LINE // FLOAT


def _start(index: Expr, size: int, total: int) -> Expr:
    """Where piece ``index`` of ``total`` begins. The last one is moved back to end with the whole."""
    return index * size if total % size == 0 else tirx.min(index * size, total - size)


class _Emitter:
    """Writes one kernel. Positions of a tile are numbered row by row; scratch has one row a position."""

    def __init__(self, spec: WinogradConv) -> None:
        self.spec, self.tile, self.m, self.n = spec, spec.tile, spec.m, spec.m + 2
        self.a, self.b, self.g = spec.x.layout.block, spec.y.layout.block, spec.tile.blocks
        self.channels = spec.x.blocks * self.a
        self.groups = spec.y.blocks // self.g
        self.chunks = spec.x.blocks // self.tile.depth
        self.strips, self.parts = -(-spec.tiles // self.tile.strip), -(-self.tile.strip // self.tile.part)
        self.input_stride = _stride(spec.x.blocks * self.tile.strip * self.a)
        self.weight_stride = _stride(self.tile.depth * self.a * self.g * self.b)
        self.product_stride = _stride(self.tile.part * self.g * self.b)
        self.x = Image.argument("x", spec.x)
        self.weights = argument("weights", (self.groups, self.channels, 9 * self.g * self.b))
        self.program = Bound(spec.program)
        self.y = Image.argument("y", spec.y)

    def emit(self) -> None:
        {"groups": self._by_groups, "strips": self._by_strips, "registers": self._in_registers}[self.tile.order]()

    def _by_groups(self) -> None:
        inputs = T.alloc_buffer((self.n * self.n, self.input_stride))
        with T.serial(0, self.strips) as strip:
            first = _start(strip, self.tile.strip, self.spec.tiles)
            self._transform_inputs(first, inputs, T.parallel)
            with T.parallel(0, self.groups * self.parts) as job, instructions(self.spec.by_lane):
                group, part = job // self.parts, job % self.parts
                start = _start(part, self.tile.part, self.tile.strip)
                # Only one row of positions at a time has its weights in scratch; all products wait for the last row.
                weights = T.alloc_buffer((self.n, self.weight_stride))
                products = T.alloc_buffer((self.n * self.n, self.product_stride))
                if self.chunks > 1:
                    self._clear_products(products)
                with T.serial(0, self.chunks) as chunk, T.serial(0, self.n) as row:
                    first_block = chunk * self.tile.depth
                    for i in range(self.n):
                        with T.If(row == i), T.Then(), T.serial(0, self.tile.depth * self.a) as channel:
                            self._transform_weights(group, first_block * self.a, channel, [i], weights, 0)
                    with T.serial(0, self.n) as column:
                        position = row * self.n + column

                        def ahead(step: Expr, block: Expr) -> None:
                            with T.If(tirx.And(step == 0, part == self.parts - 1)), T.Then():
                                self._prefetch(group, chunk, position * self.tile.depth + block, self.n * self.n)

                        self._multiply(inputs, weights, products, position, column, start, first_block, ahead)
                self._finish(group, first + start, products)

    def _by_strips(self) -> None:
        positions = self.n * self.n
        weights = T.alloc_buffer((self.groups * positions, self.weight_stride))
        with T.parallel(0, self.groups * self.channels) as job:
            group, channel = job // self.channels, job % self.channels
            self._transform_weights(group, 0, channel, range(self.n), weights, group * positions)
        with T.parallel(0, self.strips) as strip, instructions(self.spec.by_lane):
            first = _start(strip, self.tile.strip, self.spec.tiles)
            inputs = T.alloc_buffer((positions, self.input_stride))
            products = T.alloc_buffer((positions, self.product_stride))
            self._transform_inputs(first, inputs, T.serial)
            with T.serial(0, self.groups) as group, T.serial(0, self.parts) as part:
                start = _start(part, self.tile.part, self.tile.strip)
                with T.serial(0, positions) as position:
                    self._multiply(inputs, weights, products, position, group * positions + position, start, 0)
                self._finish(group, first + start, products)

    def _in_registers(self) -> None:
        inputs = T.alloc_buffer((self.n * self.n, self.input_stride))
        self._transform_inputs(0, inputs, T.parallel)
        places = [(k, *divmod(k, self.n)) for k in range(self.n * self.tile.tiles)]
        with T.parallel(0, self.groups * self.parts) as job, instructions(self.spec.by_lane):
            group, part = job // self.parts, job % self.parts
            start = _start(part, self.tile.part, self.tile.strip)
            products = T.alloc_buffer((self.n * self.n, self.product_stride))
            sums = Registers(self.n * self.tile.tiles, self.b)
            self._clear_products(products)
            with T.serial(0, self.chunks) as chunk:
                for i in range(self.n):
                    for k, t, j in places:
                        sums[k] = products[i * self.n + j, self._product_at(t, 0)]
                    with T.serial(0, self.tile.depth) as near, T.serial(0, self.a) as lane:
                        block = chunk * self.tile.depth + near
                        self._prefetch(group, chunk, (i * self.tile.depth + near) * self.a + lane, self.n * self.a)
                        row = self._weight_row(group, block * self.a + lane, 0, i)
                        for k, t, j in places:
                            value = inputs[i * self.n + j, self._input_at(block, start + t, lane)]
                            sums[k] = multiply_add(self.spec.by_lane, sums[k], row[j], value, self.b)
                    for k, t, j in places:
                        T.buffer_store(products, sums[k], [i * self.n + j, self._product_at(t, 0)])
            self._finish(group, start, products)

    def _prefetch(self, group: Expr, chunk: Expr, share: Expr, shares: int) -> None:
        """Fetch a share of the weights that come after a chunk: memory is then as busy as the registers are.

        There are so many shares for each block of a chunk. The addresses run on into the next group, and past the end.
        """
        values = -(-self.a * 9 * self.g * self.b // shares)
        for offset in range(0, values, LINE // FLOAT):
            prefetch(self.weights[group, (chunk + 1) * self.tile.depth * self.a, share * values + offset])

    # One dimension of scratch is the position; these are indices into the other.

    def _input_at(self, block: Expr, t: Expr, lane: Expr) -> Expr:
        return (block * self.tile.strip + t) * self.a + lane

    def _weight_at(self, channel: Expr, g: Expr) -> Expr:
        return ramp((channel * self.g + g) * self.b, self.b)

    def _product_at(self, t: Expr, g: Expr) -> Expr:
        return ramp((t * self.g + g) * self.b, self.b)

    def _clear_products(self, products: Any) -> None:
        with T.serial(0, self.n * self.n) as position, T.serial(0, self.tile.part) as t, T.serial(0, self.g) as g:
            T.buffer_store(products, splat(0.0, self.b), [position, self._product_at(t, g)])

    def _place(self, tile: Expr) -> tuple[Expr, Expr, Expr]:
        """Picture, row and column of a tile among those of all pictures; without the move of the last ones."""
        rows, columns = self.spec.tile_rows, self.spec.tile_columns
        return tile // (rows * columns), tile // columns % rows * self.m, tile % columns * self.m

    def _moved(self, row: Expr, column: Expr) -> tuple[Expr, Expr]:
        """The last tiles of a row or column are moved back so that they end with the picture."""
        _, _, height, width = self.spec.y.shape
        row = tirx.min(row, height - self.m) if height % self.m else row
        return row, tirx.min(column, width - self.m) if width % self.m else column

    def _transform_inputs(self, first: Expr, inputs: Any, loop: Callable[[int, int], Any]) -> None:
        """Inputs of a strip's tiles, from tile ``first`` on."""
        top, left, _, _ = self.spec.padding
        with loop(0, self.spec.x.blocks * self.tile.strip) as job:
            block, t = job // self.tile.strip, job % self.tile.strip
            picture, *corner = self._place(first + t)
            row, column = self._moved(*corner)
            columns = []
            for j in range(self.n):
                at = [(picture, block, row + (i - top), column + (j - left)) for i in range(self.n)]
                values = [T.bind(self._channels_only(self.x.vector(*where), block)) for where in at]
                columns.append(transforms.inputs(self.m, values, T.bind))
            rows = _transposed(columns)
            where = ramp(self._input_at(block, t, 0), self.a)
            for i, row_values in enumerate(rows):
                for j, value in enumerate(transforms.inputs(self.m, row_values, T.bind)):
                    T.buffer_store(inputs, value, [i * self.n + j, where])

    def _weight_row(self, group: Expr, channel: Expr, g: Expr, i: int) -> list[Expr]:
        """One row of transformed weights of one input channel."""
        columns = [
            [self.weights[group, channel, ramp(((k * 3 + j) * self.g + g) * self.b, self.b)] for k in range(3)]
            for j in range(3)
        ]
        return transforms.weights(self.m, [T.bind(transforms.weights(self.m, c)[i]) for c in columns], T.bind)

    def _transform_weights(
        self, group: Expr, first_channel: Expr, channel: Expr, rows: Sequence[int], weights: Any, first_row: Expr
    ) -> None:
        """Rows of positions of one channel, counted from ``first_channel``."""
        with T.serial(0, self.g) as g:
            for k, i in enumerate(rows):
                for j, value in enumerate(self._weight_row(group, first_channel + channel, g, i)):
                    T.buffer_store(weights, value, [first_row + k * self.n + j, self._weight_at(channel, g)])

    def _channels_only(self, value: Expr, block: Expr) -> Expr:
        """Zeros in the lanes of the last block that are no channels: what they hold must not reach a sum."""
        channels = self.spec.x.shape[1]
        if channels % self.a == 0:
            return value
        lanes = ramp(block * self.a, self.a)
        return tirx.Select(lanes < tirx.Broadcast(tirx.const(channels, "int32"), self.a), value, splat(0.0, self.a))

    def _multiply(
        self,
        inputs: Any,
        weights: Any,
        products: Any,
        position: Expr,
        weight: Expr,
        start: Expr,
        first_block: Expr,
        meanwhile: Callable[[Expr, Expr], None] = lambda step, block: None,
    ) -> None:
        """Products of one position for a part of a strip, over ``depth`` blocks of channels from ``first_block`` on.

        ``weight`` is the row that this position's weights have. ``meanwhile`` is done once a register tile and block.
        """
        tiles, form = self.tile.tiles, self.spec.by_lane
        sums = Registers(tiles * self.g, self.b)
        places = [(k, *divmod(k, self.g)) for k in range(tiles * self.g)]
        with T.serial(0, -(-self.tile.part // tiles)) as step:
            tile = _start(step, tiles, self.tile.part)
            for k, t, g in places:
                before = products[position, self._product_at(tile + t, g)]
                sums[k] = splat(0.0, self.b) if self.chunks == 1 else before
            with T.serial(0, self.tile.depth) as block:
                meanwhile(step, block)

                def weight_of(lane: Expr, g: int) -> Expr:
                    return weights[weight, self._weight_at(block * self.a + lane, g)]

                def input_at(t: int, lane: Expr) -> Expr:
                    return self._input_at(first_block + block, start + tile + t, lane)

                def vector_at(t: int) -> Expr:
                    return inputs[position, ramp(input_at(t, 0), self.a)]

                if form and self.a > 1:
                    for _, g, t, add in multiply_adds(form, self.a, self.b, self.g, tiles, weight_of, vector_at):
                        sums[t * self.g + g] = add(sums[t * self.g + g])
                else:
                    with T.serial(0, self.a) as lane:
                        for k, t, g in places:
                            value = inputs[position, input_at(t, lane)]
                            sums[k] = multiply_add(form, sums[k], weight_of(lane, g), value, self.b)
            for k, t, g in places:
                T.buffer_store(products, sums[k], [position, self._product_at(tile + t, g)])

    def _finish(self, group: Expr, first: Expr, products: Any) -> None:
        """Transform the products of a part whose first tile is ``first`` of all, apply the program and store."""
        with T.serial(0, self.tile.part) as t, T.serial(0, self.g) as g:
            picture, *corner = self._place(first + t)
            row, column = self._moved(*corner)
            block = group * self.g + g
            columns = []
            for j in range(self.n):
                values = [T.bind(products[i * self.n + j, self._product_at(t, g)]) for i in range(self.n)]
                columns.append([T.bind(value) for value in transforms.outputs(self.m, values, T.bind)])
            for r, row_values in enumerate(_transposed(columns)):
                for c, value in enumerate(transforms.outputs(self.m, row_values, T.bind)):
                    where = (picture, block, row + r, column + c)
                    with self._unless_overlapped(r, c, (row, column), corner):
                        self.y.put(*where, self.program(value, self.b, *where))
            with T.If(column == 0), T.Then():
                self.y.clear_border(picture, block, row, self.m)

    @contextmanager
    def _unless_overlapped(self, r: int, c: int, moved: Sequence[Expr], corner: Sequence[Expr]) -> Iterator[None]:
        """A pixel of a tile that was moved back belongs to the tile before: a result does not depend on who is last."""
        conditions = [
            at + offset >= start
            for at, offset, start, size in zip(moved, (r, c), corner, self.spec.y.shape[2:], strict=True)
            if offset < -size % self.m
        ]
        if not conditions:
            yield
            return
        with T.If(functools.reduce(tirx.And, conditions)), T.Then():
            yield


def _transposed(values: Sequence[Sequence[Expr]]) -> list[list[Expr]]:
    return [list(row) for row in zip(*values, strict=True)]
