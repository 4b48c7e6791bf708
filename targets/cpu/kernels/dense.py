"""Matrix products with constant weights: a tile of rows and columns stays in registers until its sums are complete.

``y[M, N] = x[M, K] @ w[K, N]`` and what a pointwise program does to it. One vector holds neighbouring columns of a row;
for each input one vector of weights a block of columns is loaded and one number a row is broadcast. Weights are packed
in the order in which they are read, so one row (a matrix times a vector, limited by memory) streams them once, each
thread its own part; many rows use a panel of weights again and again while it is in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.images import argument, kernel, ramp, splat
from targets.cpu.kernels.program import NOTHING, Program, evaluate

#: Multiply-adds from which on waking other threads pays.
PARALLEL_FROM = 200_000


@dataclass(frozen=True, slots=True)
class DenseTile:
    """What one thread keeps in registers and in its cache."""

    #: Rows, and blocks of columns, in registers at a time.
    rows: int
    blocks: int
    #: Neighbouring inputs with sums of their own: a small tile needs them to hide the latency of a multiply-add.
    sums: int
    #: Rows of x that a thread uses for all columns before it takes others: its cache holds them. A multiple of `rows`.
    chunk: int
    #: Inputs for which a panel of weights stays in the cache while all rows of a chunk use it.
    depth: int


@dataclass(frozen=True, slots=True)
class Dense:
    """``x`` (rows, inputs) and ``y`` (rows, outputs) are plain; ``lanes`` is at most ``outputs``."""

    rows: int
    inputs: int
    outputs: int
    tile: DenseTile
    lanes: int
    #: Operands of kind ``channel`` have the shape (outputs,), those of kind ``image`` (rows, outputs).
    program: Program = NOTHING
    #: Processors that multiply by one lane of a register (ARM) load neighbouring inputs of a row at once.
    by_lane: bool = False

    @property
    def blocks(self) -> int:
        """Blocks of columns."""
        return -(-self.outputs // self.lanes)

    @property
    def groups(self) -> int:
        """Panels of weights: as many blocks of columns each as a tile has."""
        return -(-self.blocks // self.tile.blocks)

    @property
    def packed(self) -> tuple[int, int, int, int]:
        """Dimensions of the packed weights."""
        return (self.groups, self.inputs, self.tile.blocks, self.lanes)

    def first(self, block: Any) -> Any:
        """First column of a block: the last one is moved back so that it ends with the row, or is there again."""
        last = self.outputs - self.lanes
        return min(block * self.lanes, last) if isinstance(block, int) else tirx.min(block * self.lanes, last)


def pack(weights: npt.NDArray[np.float32], spec: Dense, transposed: bool = False) -> npt.NDArray[np.float32]:
    """(K, N), or (N, K) when ``transposed``, to (ceil(N / (g·b)), K, g, b): in the order in which the kernel reads."""
    columns = weights if transposed else weights.T
    starts = [spec.first(block) for block in range(spec.groups * spec.tile.blocks)]
    parts = np.stack([columns[start : start + spec.lanes] for start in starts])
    parts = parts.reshape(spec.groups, spec.tile.blocks, spec.lanes, spec.inputs)
    return np.ascontiguousarray(parts.transpose(0, 3, 1, 2))


def plan(rows: int, inputs: int, outputs: int, *, lanes: int, registers: int, l2_bytes: int) -> tuple[DenseTile, int]:
    """The tile for a product of this size, and its lanes.

    ``lanes`` and ``registers`` are those of the processor, ``l2_bytes`` is what one core can count on.
    """
    while lanes > outputs:
        lanes //= 2
    blocks = -(-outputs // lanes)

    def cost(tile: tuple[int, int]) -> tuple[float, int]:
        """Cycles for each input of all tiles, when two multiply-adds and two loads start in one, each taking four."""
        r, g = tile
        cycles = max(r * g / 2, (r + g) / 2, 4 if rows > 1 else 0)
        return -(-rows // r) * -(-blocks // g) * cycles, -r * g

    free = registers - 2
    tiles = [
        (r, g)
        for r in range(1, min(rows, free) + 1)
        for g in range(1, min(blocks, free) + 1)
        if r * g + min(r, g) <= free and (g <= 8)
    ]
    r, g = min(tiles, key=cost)
    sums = max(1, min(8, free - 2) // (r * g), 1)
    half = l2_bytes // 2
    depth = max(64, half // (4 * g * lanes))
    depth = inputs if depth >= inputs else -(-inputs // -(-inputs // depth))
    tiles_of_rows = -(-rows // r)
    chunk = min(tiles_of_rows, max(1, half // (4 * depth * r)))
    return DenseTile(r, g, sums, chunk * r, depth), lanes


def dense(spec: Dense, name: str) -> Any:
    """Arguments: x, packed weights, the program's operands, y."""
    tile, lanes = spec.tile, spec.lanes
    row_tiles = -(-spec.rows // tile.rows)
    chunk_tiles = min(tile.chunk // tile.rows, row_tiles)
    chunks = -(-row_tiles // chunk_tiles)
    parts = -(-spec.inputs // tile.depth)
    cells = [(r, g) for r in range(tile.rows) for g in range(tile.blocks)]
    work = spec.rows * spec.inputs * spec.outputs

    def body() -> None:
        x = argument("x", (spec.rows, spec.inputs))
        weights = argument("weights", spec.packed)
        shapes = {"channel": (spec.outputs,), "image": (spec.rows, spec.outputs)}
        operands = [
            argument(f"operand{index}", shapes[operand.kind]) for index, operand in enumerate(spec.program.operands)
        ]
        y = argument("y", (spec.rows, spec.outputs))

        def finish(value: Any, row: Any, block: Any) -> None:
            columns = ramp(spec.first(block), lanes)

            def operand(index: int) -> Any:
                of_column = spec.program.operands[index].kind == "channel"
                return operands[index][columns] if of_column else operands[index][row, columns]

            T.buffer_store(y, evaluate(spec.program, value, lanes, operand), [row, columns])

        def register(cell: int, part: int = 0) -> Any:
            return ramp((part * len(cells) + cell) * lanes, lanes)

        def multiply(sums: Any, group: Any, row: Any, start: Any, stop: int) -> None:
            """Add what the inputs from ``start`` to ``start + stop`` give."""

            def add(k: Any, part: int, value: Any) -> None:
                for cell, (r, g) in enumerate(cells):
                    index = register(cell, part)
                    product = splat(value(r), lanes) * weights[group, k, g, ramp(0, lanes)]
                    T.buffer_store(sums, sums[index] + product, [index])

            def steps(first: Any, count: int) -> None:
                if spec.by_lane and count > 1:
                    vectors = [x[row + r, ramp(first, count)] for r in range(tile.rows)]
                    for lane in range(count):
                        add(first + lane, lane % tile.sums, lambda r, lane=lane: tirx.Shuffle([vectors[r]], [lane]))
                else:
                    for lane in range(count):
                        add(first + lane, lane % tile.sums, lambda r, lane=lane: x[row + r, first + lane])

            count = max(tile.sums, lanes) if spec.by_lane else tile.sums
            whole, rest = divmod(stop, count)
            if whole:
                with T.serial(0, whole) as step:
                    steps(start + step * count, count)
            for k in range(stop - rest, stop):
                steps(start + k, 1)

        def clear(sums: Any) -> None:
            for cell in range(len(cells) * tile.sums):
                T.buffer_store(sums, splat(0.0, lanes), [register(cell)])

        def total(sums: Any, cell: int) -> Any:
            values = [sums[register(cell, part)] for part in range(tile.sums)]
            while len(values) > 1:
                values = [a + b for a, b in zip(values[::2], values[1::2], strict=False)] + values[len(values) & ~1 :]
            return values[0]

        with (T.parallel if work >= PARALLEL_FROM else T.serial)(0, chunks * spec.groups) as job:
            chunk, group = job // spec.groups, job % spec.groups
            sums = T.alloc_buffer((len(cells) * tile.sums * lanes,), "float32", scope="local")
            # The last chunk, and the last tile of rows, are moved back so that they end with the rows.
            first_tile = tirx.min(chunk * chunk_tiles, row_tiles - chunk_tiles)

            def row_of(index: Any) -> Any:
                return tirx.min((first_tile + index) * tile.rows, spec.rows - tile.rows)

            if parts == 1:
                with T.serial(0, chunk_tiles) as index:
                    row = row_of(index)
                    clear(sums)
                    multiply(sums, group, row, 0, spec.inputs)
                    for cell, (r, g) in enumerate(cells):
                        finish(total(sums, cell), row + r, group * tile.blocks + g)
                return
            # Sums of all the chunk's tiles wait in the cache while other inputs' panels come by.
            waiting = T.alloc_buffer((chunk_tiles, len(cells) * lanes), "float32")
            for part in range(parts):
                start = part * tile.depth
                with T.serial(0, chunk_tiles) as index:
                    row = row_of(index)
                    clear(sums)
                    multiply(sums, group, row, start, min(tile.depth, spec.inputs - start))
                    for cell, (r, g) in enumerate(cells):
                        value, at = total(sums, cell), register(cell)
                        if part:
                            value = value + waiting[index, at]
                        if part == parts - 1:
                            finish(value, row + r, group * tile.blocks + g)
                        else:
                            T.buffer_store(waiting, value, [index, at])

    return kernel(name, body)
