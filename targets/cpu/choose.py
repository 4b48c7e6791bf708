"""Which kernel computes a convolution, with which tile: from the processor's figures, without a search.

Every kernel that can compute it is a candidate with an estimate of its cycles; the cheapest is taken.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from targets.cpu.kernels.direct import Tile
from targets.cpu.processors import Processor

#: Cycles from the start of a multiply-add to its sum (Intel and AMD since 2015: 4; Cortex-A72: 7, A76: 4).
LATENCY = 4
#: Bytes a cycle from the second-level cache: what weights that do not fit the first level come with.
L2_BYTES = 32


def tile(blocks: int, rows: int, columns: int, times: int, processor: Processor, *, by_lane: bool = False) -> Tile:
    """The tile of a direct convolution that takes the fewest cycles.

    ``blocks`` × ``rows`` × ``columns`` is the result, of which there are ``times``: pictures, or groups of channels.
    """
    return min(
        _tiles(blocks, rows, columns, processor, by_lane),
        key=lambda t: _cycles(t, blocks, rows, columns, times, processor, by_lane),
    )


def _tiles(blocks: int, rows: int, columns: int, processor: Processor, by_lane: bool) -> Iterator[Tile]:
    for g in (g for g in range(1, min(blocks, 16) + 1) if blocks % g == 0):
        for r, c in itertools.product(range(1, min(rows, 8) + 1), range(1, min(columns, 31) + 1)):
            # Sums, the weights of one step, and a broadcast pixel (or all of them, where they are read by lane).
            if g * r * c + g + (r * c if by_lane else 1) <= processor.registers:
                yield Tile(g, r, c)


def by_lane(processor: Processor) -> bool:
    """Whether a multiply-add takes one lane of a register for all: ARM's do, x86's take a number from memory."""
    return {"asimd", "neon"} & set(processor.features) != set()


def _cycles(t: Tile, blocks: int, rows: int, columns: int, times: int, processor: Processor, by_lane: bool) -> float:
    pixels = t.rows * t.columns
    sums = t.blocks * pixels
    loads = t.blocks + (pixels / processor.lanes if by_lane else pixels)
    step = max(
        sums / processor.fma_per_cycle,
        loads / processor.loads_per_cycle,
        LATENCY,
        t.blocks * processor.lanes * 4 / L2_BYTES,
    )
    # Multiply-adds and loads share the front end: of two tiles the one with fewer loads leaves it more room.
    step += 0.05 * loads
    row_tiles, column_tiles = math.ceil(rows / t.rows), math.ceil(columns / t.columns)
    shares = blocks // t.blocks * row_tiles * times
    even = math.ceil(shares / processor.cores) * processor.cores / shares
    return step * column_tiles * shares * even
