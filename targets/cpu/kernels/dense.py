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

from targets.cpu.kernels.images import argument, kernel, prefetch, ramp, splat
from targets.cpu.kernels.lanes import ByLane, instructions, multiply_add, multiply_adds
from targets.cpu.kernels.program import NOTHING, Program, evaluate

#: Multiply-adds from which on waking other threads pays.
PARALLEL_FROM = 200_000
#: Threads that are expected to share the work: two and four get equal parts.
THREADS = 4
#: So many sums hide the latency of a multiply-add: two start in a cycle, each takes four.
SUMS = 8
#: What loads cost although they run beside multiply-adds. Measured: 6 × 4 vectors are faster than 14 × 2 and 8 × 2.
LOAD_COST = 0.2
#: Half cycles that a vector takes to come from memory, for a thread of several. Measured: 5 to 25 GB/s on 512 bits.
MEMORY = 32
#: Numbers between copied rows: rows a power of two apart would take each other's place in the first-level cache.
APART = 16
#: How much of the first-level cache a panel of weights takes, and the rows that it is multiplied with.
PANEL_SHARE = 0.75
#: How much of the second-level cache a chunk's copied inputs take.
COPY_SHARE = 1 / 8
#: How much of the time that a panel takes from memory is not hidden although it is asked for while the one before it
#: is used. Measured: reading all weights for half as many rows each costs a tenth with 250 rows.
SHOWS = 0.5
#: Half cycles that it takes a job to copy one input of a row, a vector of them at a time.
COPY = 0.5


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
    #: Jobs that share a chunk's columns, if it has more than one tile of rows: each copies the chunk.
    shares: int = 1


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
    rows: int,
    inputs: int,
    outputs: int,
    *,
    lanes: int,
    registers: int,
    l1_bytes: int,
    l2_bytes: int,
    by_lane: ByLane = "",
) -> tuple[DenseTile, int]:
    """The tile for a product of this size, and its lanes.

    ``lanes`` and ``registers`` are the processor's, ``l1_bytes`` and ``l2_bytes`` what one of its cores can count on.
    """
    while lanes > outputs:
        lanes //= 2
    blocks = _shares(outputs, lanes)
    parallel = rows * inputs * outputs >= PARALLEL_FROM
    far = MEMORY if inputs * outputs * 4 > l2_bytes else 0

    def depth(r: int, g: int) -> int:
        """Inputs in parts of equal size for which a panel and a tile's rows stay in the first cache."""
        most = max(1, int(PANEL_SHARE * l1_bytes) // (4 * (g * lanes + r) * lanes)) * lanes
        return min(inputs, _shares(_shares(inputs, _shares(inputs, most)), lanes) * lanes)

    def cost(choice: tuple[int, int, int, int]) -> tuple[float, int]:
        """Half cycles for each input when ``r`` rows × ``g`` blocks are a tile, in ``n`` chunks and ``m`` shares.

        In a cycle two multiply-adds start, two loads from the first cache, half a load from the second.
        """
        r, g, n, m = choice
        # One row gets several sums for each block instead of more rows.
        tile = max(r * g, r + g, SUMS if rows > 1 else 0)
        loads, groups, tiles = LOAD_COST * (r + g), _shares(blocks, g), _shares(_shares(rows, r), n)
        if tiles == 1:
            jobs, each = n * groups, max(max(tile, 4 * g) + loads, far * g)
        else:
            jobs = n * m
            each = _shares(groups, m) * (tiles * (tile + loads) + SHOWS * far * g) + COPY * tiles * r
        busiest = _shares(jobs, THREADS) * THREADS if parallel else jobs
        return busiest * each, -r * g

    def fits(r: int, g: int) -> bool:
        """Whether registers hold the sums, what is used more than once, and something to multiply it with."""
        return r * g + (r if by_lane else min(r, g)) + 1 < registers

    def choices() -> Iterator[tuple[int, int, int, int]]:
        for r in range(1, min(rows, registers) + 1):
            for g in range(1, min(blocks, SUMS) + 1):
                if not fits(r, g):
                    continue
                tiles = _shares(rows, r)
                # Most of the second cache is for sums and weights.
                least = _shares(4 * rows * depth(r, g), int(COPY_SHARE * l2_bytes))
                chunks = range(least, least + THREADS + 1) if tiles > 1 else (1,)
                shares = {min(m, _shares(blocks, g)) for m in (1, 2, THREADS)} if tiles > 1 else (1,)
                yield from ((r, g, n, m) for n in chunks if tiles == 1 or 2 * n <= tiles for m in shares)

    # So long rows that the second cache holds no copy of two tiles of them: each tile is then a chunk of its own.
    alone = ((r, 1, _shares(rows, r), 1) for r in range(1, rows + 1) if fits(r, 1))
    r, g, n, m = min(choices(), key=cost, default=None) or min(alone, key=cost)
    chunk = _shares(_shares(rows, r), n)
    return DenseTile(r, g, max(1, SUMS // (r * g)), chunk * r, depth(r, g) if chunk > 1 else inputs, m), lanes


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

        def multiply(sums: Any, group: Any, start: Any, stop: int, number: Any) -> None:
            """Add what the inputs from ``start`` to ``start + stop`` give; ``number(r, k, n)`` are ``n`` of a row."""

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
                    lambda r: number(r, first, vector),
                ):
                    index = register(r * tile.blocks + g, (part + lane) % tile.sums)
                    T.buffer_store(sums, add(sums[index]), [index])

            def add_numbers(first: Any, count: int) -> None:
                for lane in range(count):
                    for cell, (r, g) in enumerate(cells):
                        index = register(cell, lane % tile.sums)
                        value = number(r, first + lane, 1)
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
        if chunk_tiles == 1:
            with loop(0, chunks * spec.groups) as job, instructions(spec.by_lane):
                row, group = tirx.min(job // spec.groups * tile.rows, spec.rows - tile.rows), job % spec.groups
                sums = T.alloc_buffer((len(cells) * tile.sums * lanes,))
                clear(sums)
                multiply(sums, group, 0, spec.inputs, lambda r, k, n: x[row + r, ramp(k, n)])
                for cell, (r, g) in enumerate(cells):
                    finish(total(sums, cell), row + r, group * tile.blocks + g)
            return
        share = _shares(spec.groups, tile.shares)
        with loop(0, chunks * tile.shares) as job, instructions(spec.by_lane):
            # The last chunk, the last tile of rows and the last share are moved back so that they end with the others.
            first_tile = T.bind(tirx.min(job // tile.shares * chunk_tiles, row_tiles - chunk_tiles))
            first_group = T.bind(tirx.min(job % tile.shares * share, spec.groups - share))
            sums = T.alloc_buffer((len(cells) * tile.sums * lanes,))
            copy = T.alloc_buffer((chunk_tiles * tile.rows, tile.depth + APART))
            # Sums of all the chunk's tiles wait in the cache while other inputs' panels come by.
            waiting = T.alloc_buffer((share * chunk_tiles, len(cells) * lanes)) if parts > 1 else None

            def row_of(index: Any) -> Any:
                return tirx.min((first_tile + index) * tile.rows, spec.rows - tile.rows)

            def bring(start: Any, count: int) -> None:
                """Copy inputs of the chunk's rows to where they lie together."""
                vector = min(lanes, 1 << count.bit_length() - 1)
                with T.serial(0, chunk_tiles) as index, T.serial(0, tile.rows) as r:
                    row = T.bind(row_of(index) + r)
                    with T.serial(0, _shares(count, vector)) as step:
                        k = T.bind(tirx.min(step * vector, count - vector))
                        T.buffer_store(copy, x[row, ramp(start + k, vector)], [index * tile.rows + r, ramp(k, vector)])

            def fetch_ahead(nth: Any, start: Any, count: int, index: Any) -> None:
                """Bring one tile's share of the next panel of weights nearer."""
                ended = T.bind(nth + 1 == share)
                group = T.bind(first_group + tirx.Select(ended, 0, nth + 1))
                first = T.bind(tirx.Select(ended, start + count, start))
                lines = _shares(tile.depth * tile.blocks, chunk_tiles)
                with T.serial(0, lines) as line:
                    at = index * lines + line
                    prefetch(weights[group, first + at // tile.blocks, at % tile.blocks, 0])

            def add(part: Any, count: int, last: bool) -> None:
                """What one part of the inputs gives to all of the job's sums."""
                start = part * tile.depth
                bring(start, count)
                with T.serial(0, share) as nth, T.serial(0, chunk_tiles) as index:
                    group = first_group + nth
                    fetch_ahead(nth, start, count, index)
                    clear(sums)
                    multiply(sums, group, start, count, lambda r, k, n: copy[index * tile.rows + r, ramp(k - start, n)])
                    for cell, (r, g) in enumerate(cells):
                        value, at = total(sums, cell), [nth * chunk_tiles + index, register(cell)]
                        if waiting is not None:
                            value = value + waiting[tuple(at)]
                        if last:
                            finish(value, row_of(index) + r, group * tile.blocks + g)
                        else:
                            T.buffer_store(waiting, value, at)

            if waiting is not None:
                with T.serial(0, share * chunk_tiles) as index:
                    for cell in range(len(cells)):
                        T.buffer_store(waiting, splat(0.0, lanes), [index, register(cell)])
                with T.serial(0, parts - 1) as part:
                    add(part, tile.depth, last=False)
            add(parts - 1, spec.inputs - (parts - 1) * tile.depth, last=True)

    return kernel(name, body)
