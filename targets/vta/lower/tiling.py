"""How a convolution is cut into pieces that fit the scratchpads, and which cut is best.

A tile is a part of the output (rows × columns × channel blocks) that stays in ACC until it is complete. Its input and
weights pass through INP and WGT in chunks of some input channel blocks. Each cut is judged by the bytes that it moves,
counted on the very sequence of chunks that the program will ask for, then by the cycles that it takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from targets.vta.config import VtaConfig
from targets.vta.lower.slots import Place, assign

#: Rows and columns of zeros that one LOAD can add on each side.
MAX_PAD = 15
#: A slot more costs micro-ops (they hold absolute indices); streams need few.
RING = 3
MAX_SLOTS = 64
#: Cuts that are counted exactly, after an estimate has sorted them.
CANDIDATES = 24
#: A cut may move this much more than the best one when it takes fewer cycles.
TRAFFIC_MARGIN = 1.01
#: Assumed cycles that an instruction costs beyond its micro-ops, to tell cuts apart.
INSTRUCTION_CYCLES = 16


@dataclass(frozen=True)
class Geometry:
    """A convolution in blocks: ``ci`` input and ``co`` output channel blocks, ``n`` batch blocks, sizes in pixels.

    ``mask`` says which pairs of blocks have weights, row by row of output blocks, one byte each.
    """

    n: int
    ci: int
    co: int
    h: int
    w: int
    oh: int
    ow: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    mask: bytes
    residual: bool

    @property
    def dense(self) -> bool:
        return 0 not in self.mask

    @cached_property
    def inputs_of(self) -> tuple[frozenset[int], ...]:
        """For each output block the input blocks that it has weights for."""
        return tuple(frozenset(ci for ci in range(self.ci) if self.mask[co * self.ci + ci]) for co in range(self.co))

    @property
    def row_step(self) -> int:
        """Input rows between two rows that are loaded: of a kernel one row high only those that it looks at."""
        return self.stride[0] if self.kernel[0] == 1 and self.padding[0] == 0 else 1

    def input_rows(self, rows: int) -> int:
        """Rows in INP for ``rows`` of output, pads included."""
        if self.row_step > 1:
            return rows
        return (rows - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1

    def input_columns(self, columns: int) -> int:
        return (columns - 1) * self.stride[1] + (self.kernel[1] - 1) * self.dilation[1] + 1


@dataclass(frozen=True, slots=True)
class Tiling:
    """Sizes of a tile, input blocks in a chunk, which loop is outside, how many tiles ACC holds."""

    rows: int
    columns: int
    co: int
    ci: int
    channels_outside: bool
    accumulators: int


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile: half-open ranges of output channel blocks, rows and columns of batch block ``n``."""

    n: int
    co: tuple[int, int]
    y: tuple[int, int]
    x: tuple[int, int]

    @property
    def pixels(self) -> int:
        return (self.y[1] - self.y[0]) * (self.x[1] - self.x[0])

    @property
    def blocks(self) -> int:
        return self.co[1] - self.co[0]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Input blocks that pass through together: ``key`` of the input's slot, of the weights' slot."""

    ci: tuple[int, ...]
    inp: tuple[int, ...]
    wgt: tuple[int, ...]
    #: Pairs (input block, output block) with weights, in the order of the weights.
    pairs: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """A tiling with everything that follows from it."""

    tiling: Tiling
    tiles: tuple[Tile, ...]
    #: For each tile its chunks.
    chunks: tuple[tuple[Chunk, ...], ...]
    #: Elements of a slot of INP and of WGT.
    inp_slot: int
    wgt_slot: int
    #: In order of request: for each tile its chunks' inputs, then its residual's parts.
    inp: tuple[Place, ...]
    wgt: tuple[Place, ...]
    bytes_moved: int
    cycles: int


def spans(total: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, total)) for start in range(0, total, size)]


def tiles(geometry: Geometry, tiling: Tiling) -> Iterator[Tile]:
    """All tiles in the order in which they are computed."""
    channels = spans(geometry.co, tiling.co)
    pixels = [(y, x) for y in spans(geometry.oh, tiling.rows) for x in spans(geometry.ow, tiling.columns)]
    batches = range(geometry.n)
    if tiling.channels_outside:
        yield from (Tile(n, co, y, x) for co in channels for n in batches for y, x in pixels)
    else:
        yield from (Tile(n, co, y, x) for n in batches for y, x in pixels for co in channels)


def chunks(geometry: Geometry, tiling: Tiling, tile: Tile) -> tuple[Chunk, ...]:
    found = []
    outputs = range(*tile.co)
    if geometry.dense:
        needed = list(range(geometry.ci))
    else:
        needed = sorted(frozenset().union(*(geometry.inputs_of[co] for co in outputs)))
    for start in range(0, len(needed), tiling.ci):
        ci = tuple(needed[start : start + tiling.ci])
        if geometry.dense:
            pairs = len(ci) * len(outputs)
        else:
            pairs = sum(len(geometry.inputs_of[co].intersection(ci)) for co in outputs)
        found.append(Chunk(ci, (tile.n, tile.y[0], tile.x[0], *ci), (tile.co[0], ci[0]), pairs))
    return tuple(found)


def residual_parts(tile: Tile, inp_slot: int) -> list[tuple[int, int]]:
    """Output blocks whose residual fits one slot of INP together."""
    size = max(inp_slot // tile.pixels, 1)
    return [(start + tile.co[0], end + tile.co[0]) for start, end in spans(tile.blocks, size)]


def why_not(geometry: Geometry, config: VtaConfig) -> str:
    """Why no tile of this convolution fits the accelerator; empty when one does."""
    if max(geometry.padding) > MAX_PAD:
        return f"padding of {max(geometry.padding)}; a load adds at most {MAX_PAD}"
    rows = geometry.input_rows(1)
    columns = geometry.input_columns(1)
    if geometry.padding[0] >= rows or geometry.padding[2] >= rows:
        return "padding as large as the kernel"
    if geometry.padding[1] >= columns or geometry.padding[3] >= columns:
        return "padding as large as the kernel"
    if rows * columns > config.inp_depth:
        return f"a kernel that reaches over {rows}×{columns} pixels; INP holds {config.inp_depth}"
    if geometry.kernel[0] * geometry.kernel[1] + 1 > min(config.wgt_depth, config.uop_depth):
        return f"a kernel of {geometry.kernel[0]}×{geometry.kernel[1]}; WGT holds {config.wgt_depth} positions"
    if max(geometry.w * geometry.row_step, geometry.h * geometry.w, geometry.oh * geometry.ow) > 65535:
        return f"pictures of {geometry.h}×{geometry.w}; a row or plane of more than 65535 pixels cannot be addressed"
    return ""


@lru_cache(maxsize=256)
def best(geometry: Geometry, config: VtaConfig) -> Schedule:
    """The cut that moves the fewest bytes; of those about equal the one with the fewest cycles.

    Raises ``ValueError`` when :func:`why_not` gives a reason.
    """
    reason = why_not(geometry, config)
    if reason:
        raise ValueError(reason)
    # With two of each in the scratchpads loads overlap with work; what is too large for that still runs.
    possible = list(_possible(geometry, config, 2)) or list(_possible(geometry, config, 1))
    ranked = sorted(possible, key=lambda tiling: _estimate(geometry, tiling, config))
    schedules = [schedule(geometry, tiling, config) for tiling in ranked[:CANDIDATES]]
    least = min(each.bytes_moved for each in schedules)
    good = [each for each in schedules if each.bytes_moved <= least * TRAFFIC_MARGIN]
    return min(good, key=lambda each: (each.cycles, each.bytes_moved))


def _sizes(total: int) -> list[int]:
    """Sizes that cut ``total`` into equal parts, as near as can be: one for each number of parts."""
    return sorted({-(-total // parts) for parts in range(1, total + 1)})


def _possible(geometry: Geometry, config: VtaConfig, copies: int) -> Iterator[Tiling]:
    kernel = geometry.kernel[0] * geometry.kernel[1]
    wgt = config.wgt_depth - int(geometry.residual)
    columns = (
        geometry.ow if geometry.input_columns(geometry.ow) * geometry.input_rows(1) * copies <= config.inp_depth else 0
    )
    for width in [columns] if columns else _sizes(geometry.ow):
        for rows in _sizes(geometry.oh):
            area = geometry.input_rows(rows) * geometry.input_columns(width)
            if copies * max(area, rows * width) > config.inp_depth:
                break
            for co in _sizes(geometry.co):
                if rows * width * co + co > config.acc_depth or copies * kernel * co > min(wgt, config.uop_depth):
                    break
                accumulators = 2 if 2 * (rows * width * co) + co <= config.acc_depth else 1
                ways = (True, False) if co < geometry.co else (True,)
                for ci in _sizes(geometry.ci):
                    if copies * ci * area > config.inp_depth or copies * kernel * co * ci > min(wgt, config.uop_depth):
                        break
                    for outside in ways:
                        yield Tiling(rows, width, co, ci, outside, accumulators)


def _estimate(geometry: Geometry, tiling: Tiling, config: VtaConfig) -> tuple[float, float]:
    """Bytes and cycles, roughly: a scratchpad keeps all that a loop needs again, or nothing."""
    kernel = geometry.kernel[0] * geometry.kernel[1]
    across, down = -(-geometry.ow // tiling.columns), -(-geometry.oh // tiling.rows)
    area = geometry.input_rows(tiling.rows) * geometry.input_columns(tiling.columns)
    pairs = sum(geometry.mask)
    groups = -(-geometry.co // tiling.co)
    inputs = min(area * across * down, int(1.5 * geometry.h * geometry.w)) * geometry.ci * geometry.n
    weights = pairs * kernel
    slots = config.inp_depth // (area * tiling.ci)
    held = config.wgt_depth // (kernel * tiling.co * tiling.ci)
    parts = -(-geometry.ci // tiling.ci)
    if tiling.channels_outside:
        again_inputs = groups if parts * across * down * geometry.n > slots else 1
        again_weights = across * down * geometry.n if parts > held else 1
    else:
        again_inputs = groups if parts > slots else 1
        again_weights = across * down * geometry.n if parts * groups > held else 1
    moved = inputs * again_inputs * config.inp_bytes + weights * again_weights * config.wgt_bytes
    count = across * down * groups * geometry.n
    instructions = count * (geometry.ci if geometry.dense else 1) * kernel
    stores = tiling.rows * tiling.columns * tiling.co if tiling.accumulators == 1 else 0
    return float(moved), float(instructions * INSTRUCTION_CYCLES + count * stores)


def schedule(geometry: Geometry, tiling: Tiling, config: VtaConfig) -> Schedule:
    """What follows from a tiling, counted on the sequence of chunks itself."""
    kernel = geometry.kernel[0] * geometry.kernel[1]
    every = tuple(tiles(geometry, tiling))
    parts = tuple(chunks(geometry, tiling, tile) for tile in every)
    area = geometry.input_rows(tiling.rows) * geometry.input_columns(tiling.columns)
    inp_slot = max(area * min(tiling.ci, geometry.ci), tiling.rows * tiling.columns if geometry.residual else 0)
    wgt_slot = max(chunk.pairs for group in parts for chunk in group) * kernel
    inp_requests: list[tuple[int, ...]] = []
    wgt_requests: list[tuple[int, ...]] = []
    sizes: dict[tuple[int, ...], int] = {}
    for tile, group in zip(every, parts, strict=True):
        for chunk in group:
            inp_requests.append(chunk.inp)
            wgt_requests.append(chunk.wgt)
            sizes[chunk.inp] = _loaded(geometry, tile) * len(chunk.ci) * config.inp_bytes
            sizes[chunk.wgt] = chunk.pairs * kernel * config.wgt_bytes
        if geometry.residual:
            for low, high in residual_parts(tile, inp_slot):
                key = (tile.n, tile.y[0], tile.x[0], low, -1)
                inp_requests.append(key)
                sizes[key] = tile.pixels * (high - low) * config.inp_bytes
    inp = assign(inp_requests, _slots(inp_requests, config.inp_depth // inp_slot))
    wgt = assign(wgt_requests, _slots(wgt_requests, (config.wgt_depth - int(geometry.residual)) // wgt_slot))
    moved = sum(sizes[key] for key, place in zip(inp_requests, inp, strict=True) if place.load)
    moved += sum(sizes[key] for key, place in zip(wgt_requests, wgt, strict=True) if place.load)
    moved += _uops(geometry, every, parts, inp, wgt, inp_slot) * config.uop_bytes
    return Schedule(
        tiling,
        every,
        parts,
        inp_slot,
        wgt_slot,
        tuple(inp),
        tuple(wgt),
        moved,
        _cycles(geometry, tiling, every, parts, moved),
    )


def _slots(requests: list[tuple[int, ...]], room: int) -> int:
    """Slots worth having: what is asked for once streams through a ring, what is asked for again is kept."""
    distinct = len(set(requests))
    if distinct == len(requests):
        return max(min(room, RING, distinct), 1)
    return max(min(room, MAX_SLOTS, distinct), 1)


def _loaded(geometry: Geometry, tile: Tile) -> int:
    """Elements of one input block that a tile loads, pads not counted."""
    rows, columns = input_window(geometry, tile)
    return (rows[1] - rows[0]) * (columns[1] - columns[0])


def input_window(geometry: Geometry, tile: Tile) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows (in steps of ``row_step``) and columns of the input that a tile reads, as half-open ranges without pads."""
    if geometry.row_step > 1:
        rows = tile.y
    else:
        start = tile.y[0] * geometry.stride[0] - geometry.padding[0]
        rows = (max(start, 0), min(start + geometry.input_rows(tile.y[1] - tile.y[0]), geometry.h))
    left = tile.x[0] * geometry.stride[1] - geometry.padding[1]
    columns = (max(left, 0), min(left + geometry.input_columns(tile.x[1] - tile.x[0]), geometry.w))
    return rows, columns


def _uops(
    geometry: Geometry,
    every: tuple[Tile, ...],
    parts: tuple[tuple[Chunk, ...], ...],
    inp: list[Place],
    wgt: list[Place],
    inp_slot: int,
) -> int:
    """Micro-ops: they hold absolute indices, so each pair of slots that meet has its own."""
    kernel = geometry.kernel[0] * geometry.kernel[1]
    seen: dict[tuple[int, ...], int] = {}
    at_inp = at_wgt = 0
    for tile, group in zip(every, parts, strict=True):
        for chunk in group:
            key = (inp[at_inp].slot, wgt[at_wgt].slot, tile.pixels, tile.blocks, len(chunk.ci))
            seen[key] = chunk.pairs * kernel
            at_inp += 1
            at_wgt += 1
        if geometry.residual:
            at_inp += len(residual_parts(tile, inp_slot))
    return sum(seen.values())


def _cycles(
    geometry: Geometry,
    tiling: Tiling,
    every: tuple[Tile, ...],
    parts: tuple[tuple[Chunk, ...], ...],
    moved: int,
) -> int:
    """Cycles of compute, with what it waits for a single accumulator's last store, or of the bus, whichever is more."""
    kernel = geometry.kernel[0] * geometry.kernel[1]
    compute = 0
    for tile, group in zip(every, parts, strict=True):
        compute += tile.pixels * sum(chunk.pairs for chunk in group) * kernel + tile.pixels * tile.blocks * 9
        compute += INSTRUCTION_CYCLES * (sum(len(chunk.ci) for chunk in group) * kernel + 12)
        if tiling.accumulators == 1:
            compute += tile.pixels * max(tile.blocks // 4, 1) * 2 + 100
    return max(compute, moved // 8)
