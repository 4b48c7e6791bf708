"""Matrix products with constant weights: a tile of rows and columns stays in registers until its sums are complete.

``y[M, N] = x[M, K] @ w[K, N]`` and what a pointwise program does to it. One vector holds neighbouring columns of a row;
for each input one vector of weights a block of columns is loaded and one number a row is broadcast. Weights are packed
in the order in which they are read, so one row (a matrix times a vector, limited by memory) streams them once, each
thread its own part; many rows use a panel of weights again and again while it is in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.images import argument, kernel, ramp, splat
from targets.cpu.kernels.lanes import ByLane, instructions, multiply_add, multiply_adds
from targets.cpu.kernels.program import NOTHING, Program, evaluate

#: Multiply-adds from which on waking other threads pays.
PARALLEL_FROM = 200_000
#: Threads that are expected to share the work: two and four get equal parts.
THREADS = 4
#: So many sums hide the latency of a multiply-add: two start in a cycle, each takes four.
SUMS = 8
#: What loads cost although they run beside multiply-adds. Measured: 6 × 4 vectors are faster than 14 × 2 and 8 × 2.
LOAD_COST = 0.1
#: Half cycles that a vector takes to come from memory, for a thread of several. Measured: 5 to 25 GB/s on 512 bits.
MEMORY = 32
#: Rows for which it pays to fetch a panel of weights from memory.
PANEL_ROWS = 512


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
    #: How a processor multiplies by one lane of a register: it then loads neighbouring inputs of a row at once.
    by_lane: ByLane = ""

    @property
    def blocks(self) -> int:
        """Blocks of columns."""
        return _shares(self.outputs, self.lanes)

    @property
    def groups(self) -> int:
        """Panels of weights: as many blocks of columns each as a tile has."""
        return _shares(self.blocks, self.tile.blocks)

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


def plan(
    rows: int, inputs: int, outputs: int, *, lanes: int, registers: int, l2_bytes: int, by_lane: ByLane = ""
) -> tuple[DenseTile, int]:
    """The tile for a product of this size, and its lanes.

    ``lanes`` and ``registers`` are the processor's, ``l2_bytes`` is what one of its cores can count on.
    """
    while lanes > outputs:
        lanes //= 2
    blocks = _shares(outputs, lanes)
    parallel = rows * inputs * outputs >= PARALLEL_FROM

    # Half of the cache is for x: all rows at once if it holds them, but panels come from memory, and many must pay it.
    most = max(l2_bytes // (8 * inputs), PANEL_ROWS)
    far = MEMORY if inputs * outputs * 4 > l2_bytes else 0

    def cost(choice: tuple[int, int, int]) -> tuple[float, int]:
        """Half cycles for each input when ``r`` rows × ``g`` blocks are a tile and the rows ``n`` chunks.

        In a cycle two multiply-adds start, two loads from the first cache, half a load from the second.
        """
        r, g, n = choice
        # One row gets several sums for each block instead of more rows.
        latency = SUMS if rows > 1 else 0
        tile = max(r * g, r + g, 4 * g, latency) + LOAD_COST * (r + g)
        jobs = n * _shares(blocks, g)
        busiest = _shares(jobs, THREADS) * THREADS if parallel else jobs
        return busiest * (max(tile, far * g) + (_shares(_shares(rows, r), n) - 1) * tile), -r * g

    def choices() -> Iterator[tuple[int, int, int]]:
        for r in range(1, min(rows, registers) + 1):
            for g in range(1, min(blocks, SUMS) + 1):
                # Beside the sums: what is used more than once, and something to multiply it with.
                if r * g + (r if by_lane else min(r, g)) + 1 < registers:
                    least = _shares(rows, most)
                    yield from ((r, g, n) for n in range(least, min(_shares(rows, r), least + THREADS) + 1))

    r, g, n = min(choices(), key=cost)
    chunk = _shares(_shares(rows, r), n)
    # The other half is for a panel of weights, in parts of equal depth, if any rows are to find it there.
    depth = _shares(inputs, _shares(inputs * g * lanes * 8, l2_bytes)) if chunk > 1 else inputs
    return DenseTile(r, g, max(1, SUMS // (r * g)), chunk * r, depth), lanes


def _shares(count: int, size: int) -> int:
    """How many of ``size`` hold ``count``."""
    return -(-count // size)


def dense(spec: Dense, name: str) -> Any:
    """Arguments: x, packed weights, the program's operands, y."""
    tile, lanes = spec.tile, spec.lanes
    row_tiles = _shares(spec.rows, tile.rows)
    chunk_tiles = min(tile.chunk // tile.rows, row_tiles)
    chunks = _shares(row_tiles, chunk_tiles)
    parts = _shares(spec.inputs, tile.depth)
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

            def weight(k: Any, g: int) -> Any:
                return weights[group, k, g, ramp(0, lanes)]

            def add_vectors(first: Any, part: int) -> None:
                """What ``vector`` inputs from ``first`` on give; the first of them to the sums of ``part``."""
                for lane, g, r, add in multiply_adds(
                    spec.by_lane,
                    vector,
                    lanes,
                    tile.blocks,
                    tile.rows,
                    lambda lane, g: weight(first + lane, g),
                    lambda r: x[row + r, ramp(first, vector)],
                ):
                    index = register(r * tile.blocks + g, (part + lane) % tile.sums)
                    T.buffer_store(sums, add(sums[index]), [index])

            def add_numbers(first: Any, count: int) -> None:
                for lane in range(count):
                    for cell, (r, g) in enumerate(cells):
                        index = register(cell, lane % tile.sums)
                        value = x[row + r, first + lane]
                        total = multiply_add(spec.by_lane, sums[index], weight(first + lane, g), value, lanes)
                        T.buffer_store(sums, total, [index])

            # As many as weights have lanes; a lone output still reads several inputs at once.
            vector = lanes if lanes > 1 else tile.sums
            count = _shares(tile.sums, vector) * vector if spec.by_lane else tile.sums
            whole, rest = divmod(stop, count)
            if whole:
                with T.serial(0, whole) as step:
                    if spec.by_lane and count > 1:
                        for part in range(0, count, vector):
                            add_vectors(start + step * count + part, part)
                    else:
                        add_numbers(start + step * count, count)
            for k in range(stop - rest, stop):
                add_numbers(start + k, 1)

        def clear(sums: Any) -> None:
            for cell in range(len(cells) * tile.sums):
                T.buffer_store(sums, splat(0.0, lanes), [register(cell)])

        def total(sums: Any, cell: int) -> Any:
            values = [sums[register(cell, part)] for part in range(tile.sums)]
            while len(values) > 1:
                values = [a + b for a, b in zip(values[::2], values[1::2], strict=False)] + values[len(values) & ~1 :]
            return values[0]

        loop = T.parallel if work >= PARALLEL_FROM else T.serial
        with loop(0, chunks * spec.groups) as job, instructions(spec.by_lane):
            chunk, group = job // spec.groups, job % spec.groups
            sums = T.alloc_buffer((len(cells) * tile.sums * lanes,))
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
