"""How a Winograd convolution is cut into pieces: from the sizes and the processor's figures, without a search on it.

Costs are counted in slots: what a vector multiply-add takes on a processor that does nothing else. What a transform
takes was measured (Golden Cove, AVX-512) in the same unit: loads and stores are most of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from targets.cpu.kernels.lanes import ByLane
from targets.cpu.kernels.program import NOTHING, Program
from targets.cpu.kernels.winograd import FLOAT, WinogradConv, WinogradTile
from targets.cpu.layout import ImageType

#: Slots for a block of one tile's inputs, and of its outputs, by m.
INPUT_SLOTS = {2: 130, 4: 370}
OUTPUT_SLOTS = {2: 80, 4: 210}
#: Slots for one input channel's weights of one block of outputs: through L1, through L2, and the arithmetic alone.
WEIGHT_SLOTS = {2: 80, 4: 180}
FAR_WEIGHT_SLOTS = {2: 170, 4: 430}
WEIGHT_ARITHMETIC = {2: 36, 4: 102}
#: Slots to load and store each sum around a matrix product; slots until the first of its sums can be added to again.
SUM_SLOTS = 3
LATENCY_SLOTS = 8
#: Slots that each thread loses where all wait for each other.
LAUNCH_SLOTS = 20_000
#: Slots lost for a line of transformed weights that comes from L2.
FAR_LOAD_SLOTS = 0.4
#: Slots for each byte of transformed weights that comes from beyond L2.
FAR_BYTE_SLOTS = 0.1
#: What every first-level data cache holds.
L1_BYTES = 32 * 1024
#: Scratch of all threads together.
SCRATCH_BYTES = 6 * 2**20


def plan(
    x: ImageType,
    y: ImageType,
    padding: tuple[int, int, int, int],
    program: Program = NOTHING,
    *,
    registers: int,
    l2_bytes: int,
    threads: int,
    by_lane: ByLane = "",
    scratch_bytes: int = SCRATCH_BYTES,
) -> WinogradConv | None:
    """The cheapest cut, or nothing where Winograd does not apply: pictures below 2 × 2, layouts without blocks.

    ``registers`` are the processor's vector registers, ``l2_bytes`` the L2 cache of one core. Scratch stays within
    ``scratch_bytes``; where no cut does, there is no plan.
    """
    fitting = plans(
        x, y, padding, program, registers=registers, threads=threads, by_lane=by_lane, scratch_bytes=scratch_bytes
    )
    return min(fitting, key=lambda spec: cost(spec, l2_bytes=l2_bytes, threads=threads), default=None)


def plans(
    x: ImageType,
    y: ImageType,
    padding: tuple[int, int, int, int],
    program: Program = NOTHING,
    *,
    registers: int,
    threads: int,
    by_lane: ByLane = "",
    scratch_bytes: int = SCRATCH_BYTES,
) -> Iterator[WinogradConv]:
    """Every cut that :func:`plan` chooses from; some come twice."""
    if min(x.layout.block, y.layout.block) == 1 or {x.dtype, y.dtype} != {"float32"}:
        return
    for m in (2, 4):
        if min(y.shape[2:]) >= m:
            for tile in _tiles(x, y, m, registers, threads, by_lane, scratch_bytes):
                spec = WinogradConv(x, y, padding, m, tile, program, by_lane)
                if scratch(spec, threads) <= scratch_bytes:
                    yield spec


def scratch(spec: WinogradConv, threads: int) -> int:
    """Bytes of scratch while the kernel runs."""
    shared, own = spec.scratch_bytes
    return shared + own * threads


def cost(spec: WinogradConv, *, l2_bytes: int, threads: int) -> float:
    """Multiply-adds that would take as long, those that idle threads could have done included.

    Direct convolution at full speed takes N · CO · CI · 9 · H · W.
    """
    tile, m, blocks = spec.tile, spec.m, spec.x.blocks
    channels, groups = blocks * spec.x.layout.block, spec.y.blocks // tile.blocks
    strips, parts = -(-spec.tiles // tile.strip), -(-tile.strip // tile.part)
    inputs, outputs = INPUT_SLOTS[m] * blocks * tile.strip, OUTPUT_SLOTS[m] * tile.blocks * tile.part
    if tile.order == "registers":
        products = ((m + 2) ** 2 * (tile.tiles + SUM_SLOTS / tile.depth) + WEIGHT_ARITHMETIC[m]) * channels
    else:
        products = (m + 2) ** 2 * -(-tile.part // tile.tiles) * _product(spec)
    if tile.order == "strips":
        shared, own = spec.scratch_bytes
        streamed = FAR_BYTE_SLOTS * shared if shared + own > l2_bytes / 2 else 0.0
        slots = _idle(strips, threads) * (inputs + groups * parts * (products + outputs) + streamed)
        slots += _idle(groups * channels, threads) * WEIGHT_SLOTS[m] * tile.blocks + 2 * LAUNCH_SLOTS * threads
    else:
        weights = 0.0
        if tile.order == "groups":
            # Weights and transformed weights of one row of positions pass through the cache once for each row.
            near = (
                tile.depth * spec.x.layout.block * tile.blocks * spec.y.layout.block * (9 + m + 2) * FLOAT <= L1_BYTES
            )
            weights = (WEIGHT_SLOTS if near else FAR_WEIGHT_SLOTS)[m] * channels * tile.blocks
        jobs = _idle(groups * parts, threads) * (weights + products + outputs)
        slots = strips * (jobs + inputs + 2 * LAUNCH_SLOTS * threads)
    return slots * spec.y.layout.block


def _product(spec: WinogradConv) -> float:
    """Slots of the matrix products of one position and one register tile, over all input channels."""
    tile, sums = spec.tile, spec.tile.blocks * spec.tile.tiles
    # An instruction multiplies by a number from memory; it is loaded into a register where there are more blocks.
    loads = tile.blocks + tile.tiles / (spec.x.layout.block if spec.by_lane else 1)
    step = max(sums, loads, LATENCY_SLOTS) + 0.1 * loads + FAR_LOAD_SLOTS * tile.blocks * spec.y.layout.block / 16
    return step * spec.x.blocks * spec.x.layout.block + SUM_SLOTS * sums * spec.x.blocks / tile.depth


def _idle(jobs: int, threads: int) -> int:
    """Jobs, and those that threads could have done which had none left."""
    return -(-jobs // threads) * threads


def _tiles(
    x: ImageType, y: ImageType, m: int, registers: int, threads: int, by_lane: ByLane, scratch_bytes: int
) -> Iterator[WinogradTile]:
    """Cuts that are worth a look, whether or not their scratch fits."""
    total = y.shape[0] * -(-y.shape[2] // m) * -(-y.shape[3] // m)
    inputs = (m + 2) ** 2 * x.blocks * x.layout.block * FLOAT
    # As few strips as scratch allows (half of it: products and weights are the rest), and a little more of them.
    fewest = -(-total * inputs * 2 // scratch_bytes)
    strips = [-(-total // count) for count in range(fewest, fewest + 4)]
    for g in (g for g in (1, 2, 3, 4) if y.blocks % g == 0):
        row_bytes = x.layout.block * g * y.layout.block * (9 + m + 2) * FLOAT
        depths = {_divisor(x.blocks, L1_BYTES // row_bytes), x.blocks}
        most = min(total, (registers - g - 1) // (g + 1 if by_lane else g))
        for tiles in range(most, most // 2, -1):
            for strip in {min(tiles * count, total) for count in range(1, 9)}:
                yield WinogradTile("strips", g, tiles, strip, strip, x.blocks)
            for strip, count, depth in itertools.product(strips, range(1, threads + 1), depths):
                part = -(-strip // count)
                if depth < x.blocks:
                    part = -(-part // tiles) * tiles
                if tiles <= part <= strip:
                    yield WinogradTile("groups", g, tiles, strip, part, depth)
    # Sums and weights of one row of positions, and what the transform needs.
    tiles = min(total, (registers - m - 4) // (m + 2))
    if tiles:
        depth = _divisor(x.blocks, L1_BYTES // (9 * x.layout.block * y.layout.block * FLOAT))
        yield WinogradTile("registers", 1, tiles, total, tiles, depth)


def _divisor(number: int, limit: int) -> int:
    """The greatest divisor up to a limit, at least 1."""
    return max(d for d in range(1, max(1, min(number, limit)) + 1) if number % d == 0)
